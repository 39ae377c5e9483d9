"""ODVG: detection and grounding lines, label maps; what is wrong is an error with file and line, or a counted skip."""

import json

import pytest
from format_cases import boxes, image_folder, json_lines, provided, skipped

from coordexp.runtime.errors import ConfigError, DataError

ENTRY = {"format": "odvg", "annotations": {"train": "train.jsonl"}, "image_dirs": {"train": ["images"]}}
LABELS = {"0": "cat", "5": "dog"}


def detection(*instances, name="a.jpg", size=(160, 120)):
    return {"filename": name, "width": size[0], "height": size[1], "detection": {"instances": list(instances)}}


def grounding(*regions, name="a.jpg", size=(160, 120)):
    content = {"caption": "a cat and two dogs", "regions": list(regions)}
    return {"filename": name, "width": size[0], "height": size[1], "grounding": content}


CAT = {"bbox": [10, 20, 30, 50], "label": 0, "category": "cat"}
DOG = {"bbox": [0, 0, 64.5, 64], "label": 5, "category": "dog"}


@pytest.fixture
def read(tmp_path):
    image_folder(tmp_path)

    def read(*lines, labels=LABELS, split="train", **options):
        (tmp_path / "train.jsonl").write_bytes(json_lines(*lines))
        if labels is not None:
            text = labels if isinstance(labels, str) else json.dumps(labels)
            (tmp_path / "labels.json").write_text(text)
            options["label_map"] = "labels.json"
        return provided(tmp_path, {**ENTRY, **options}, split)

    return read


def test_labels_are_category_ids_and_corners_become_sizes(read):
    content = read(detection(CAT, DOG), detection(name="c.png", size=(64, 64)))
    assert content["categories"] == [{"id": 0, "name": "cat"}, {"id": 5, "name": "dog"}]
    assert boxes(content) == {"a.jpg": [("cat", (10, 20, 20, 30)), ("dog", (0, 0, 64.5, 64))], "c.png": []}


def test_phrases_may_be_asked_one_by_one_and_describe_nothing(read):
    both, same = [[1, 2, 3, 4], [5, 6, 7, 8]], [[5, 6, 7, 8]]
    regions = [{"bbox": both, "phrase": "two dogs"}, {"bbox": same[0], "phrase": "the small dog"}]
    content = read(grounding(*regions, {"bbox": [], "phrase": "a cat"}), labels=None, grounding="phrases")
    assert boxes(content)["a.jpg"] == [("object", (1, 2, 2, 2)), ("object", (5, 6, 2, 2))]
    found = [(phrase["text"], phrase["annotation_ids"]) for phrase in content["images"][0]["phrases"]]
    assert found == [("two dogs", [1, 2]), ("the small dog", [2]), ("a cat", [])]


def test_phrases_of_several_captions_of_an_image_are_combined(read):
    lines = [grounding({"bbox": [1, 2, 3, 4], "phrase": phrase}) for phrase in ("a dog", "the brown dog")]
    content = read(*lines, labels=None, grounding="phrases", repeated_images="merge")
    found = [(phrase["text"], phrase["annotation_ids"]) for phrase in content["images"][0]["phrases"]]
    assert found == [("a dog", [1]), ("the brown dog", [1])] and len(content["annotations"]) == 1


def test_a_phrase_with_a_bad_box_is_left_out(read):
    regions = [{"bbox": [[1, 2, 3, 4], [9, 9, 5, 5]], "phrase": "two dogs"}, {"bbox": [1, 2, 3, 4], "phrase": "a dog"}]
    content = read(grounding(*regions), labels=None, grounding="phrases", on_bad="skip")
    assert [phrase["text"] for phrase in content["images"][0]["phrases"]] == ["a dog"]
    assert skipped(content) == [("phrase", "swapped corners", 1)]


def test_phrases_are_categories_with_the_same_ids_in_every_split(read):
    region = {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "phrase": "two dogs"}
    content = read(grounding({"bbox": [10, 20, 30, 50], "phrase": "a cat"}, region), labels=None)
    assert boxes(content)["a.jpg"] == [
        ("a cat", (10, 20, 20, 30)),
        ("two dogs", (1, 2, 2, 2)),
        ("two dogs", (5, 6, 2, 2)),
    ]
    assert content["images"][0]["caption"] == "a cat and two dogs"
    alone = read(grounding(region), labels=None)
    assert alone["categories"][0] in content["categories"]


def test_several_captions_of_one_image_are_joined_on_request(read):
    region = {"bbox": [10, 20, 30, 50], "phrase": "a cat"}
    lines = [grounding(region), grounding(region, {"bbox": [1, 2, 3, 4], "phrase": "a dog"})]
    with pytest.raises(DataError, match=r"train\.jsonl:2: several entries for one image: .*repeated_images: merge"):
        read(*lines, labels=None)
    content = read(*lines, labels=None, repeated_images="merge")
    assert boxes(content) == {"a.jpg": [("a cat", (10, 20, 20, 30)), ("a dog", (1, 2, 2, 2))]}


def test_a_file_from_windows_is_read(read, tmp_path):
    line = json.dumps(detection(CAT, name="sub\\b.jpg", size=(200, 100))).encode()
    assert list(boxes(read(b"\xef\xbb\xbf" + line + b"\r"))) == ["sub/b.jpg"]


NAN = json.dumps(detection({"bbox": [float("nan"), 2, 3, 4], "label": 0})).encode()
BAD = {
    "missing image": (detection(CAT, name="zebra.jpg"), "image", "missing image", "zebra"),
    "a folder outside": (detection(CAT, name="../a.jpg"), "image", "file name outside the image folders", r"\.\./a"),
    "an absolute path": (detection(CAT, name="/etc/passwd"), "image", "file name outside the image folders", "passwd"),
    "a URL": (detection(CAT, name="http://x/a.jpg"), "image", "image is not a file", "download it"),
    "a null byte": (detection(CAT, name="a\0.jpg"), "image", "missing image", "a"),
    "no size": ({"filename": "a.jpg", "detection": {}}, "image", "invalid entry", "width"),
    "an impossible size": (detection(CAT, size=(0, 120)), "image", "invalid entry", "0x120"),
    "no annotations": ({"filename": "a.jpg", "width": 1, "height": 1}, "image", "invalid entry", "detection"),
    "not JSON": (b'{"filename": ', "image", "not JSON", ""),
    "another delimiter": (b"a.jpg;160;120;0;10;20;30;50", "image", "not JSON", ""),
    "a list": ([1, 2], "image", "invalid entry", "array"),
    "not UTF-8": (b'{"filename": "\xff\xfe.jpg"}', "image", "not UTF-8", "byte 14"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "image", "not UTF-8", ""),
    "deep nesting": (b"[" * 100_000, "image", "not JSON", ""),
    "missing label": (detection({"bbox": [1, 2, 3, 4]}), "annotation", "missing category", r"instances\[0\]"),
    "unknown class index": (detection({"bbox": [1, 2, 3, 4], "label": 7}), "annotation", "unknown category", "7"),
    "unknown class": (detection({"bbox": [1, 2, 3, 4], "category": "cow"}), "annotation", "unknown category", "cow"),
    "label as text": (detection({"bbox": [1, 2, 3, 4], "label": "0"}), "annotation", "invalid entry", r"\[0\]\.label"),
    "label and name": (
        detection({**CAT, "category": "dog"}),
        "annotation",
        "label and category differ",
        "'cat'.*'dog'",
    ),
    "NaN": (NAN, "annotation", "non-finite box", "nan"),
    "huge": (detection({"bbox": [1, 2, 10**400, 4], "label": 0}), "annotation", "non-finite box", ""),
    "swapped corners": (detection({"bbox": [30, 2, 3, 4], "label": 0}), "annotation", "swapped corners", "x1 <= x2"),
    "three numbers": (detection({"bbox": [3, 4, 5], "label": 0}), "annotation", "invalid box", "four numbers"),
    "text in a box": (detection({"bbox": ["1", 2, 3, 4], "label": 0}), "annotation", "invalid box", "'1'"),
    "true in a box": (detection({"bbox": [True, 2, 3, 4], "label": 0}), "annotation", "invalid box", "True"),
    "no box": (detection({"label": 0}), "annotation", "invalid entry", "bbox"),
    "an empty phrase": (grounding({"bbox": [1, 2, 3, 4], "phrase": " "}), "annotation", "missing category", "phrase"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_with_its_line_or_a_counted_skip(case, read):
    line, kind, reason, words = BAD[case]
    with pytest.raises(DataError, match=rf"train\.jsonl:2: {reason}(.|\n)*{words}"):
        read(detection(DOG, name="c.png", size=(64, 64)), line)
    content = read(detection(DOG, name="c.png", size=(64, 64)), line, on_bad="skip")
    assert skipped(content) == [(kind, reason, 2)]
    assert len(content["images"]) == (1 if kind == "image" else 2) and len(content["annotations"]) == 1


def test_an_image_that_lost_a_box_is_not_exhaustively_annotated(read):
    content = read(detection({**CAT, "bbox": [30, 2, 3, 4]}), on_bad="skip")
    assert content["images"][0]["not_exhaustive_category_ids"] == [0]


@pytest.mark.parametrize("text", [b"", b"\xef\xbb\xbf", b"\r\n\n"], ids=["empty", "only a mark", "blank"])
def test_an_empty_file_is_an_error(text, tmp_path):
    image_folder(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=r"train\.jsonl: the file has no entries"):
        provided(tmp_path, ENTRY)
    assert not (tmp_path / "work" / "raw" / "train.annotations.json").exists()


BAD_LABELS = {
    '["cat"]': "expected an object",
    "{}": "expected an object",
    '{"0": ': "not a label map",
    '{"a": "cat"}': "expected a numeric label",
    '{"0": ""}': "expected a category name",
    '{"0": 1}': "expected a category name",
    '{"0": "cat", "1": "cat"}': "two labels have the same name",
    '{"0": "cat", "0": "dog"}': "the label is repeated",
}


@pytest.mark.parametrize("text", BAD_LABELS)
def test_a_bad_label_map_is_an_error(text, read):
    with pytest.raises(DataError, match=rf"labels\.json: .*{BAD_LABELS[text]}"):
        read(detection(CAT), labels=text)


def test_names_that_collide_are_bad(read):
    region = [{"bbox": [1, 2, 3, 4], "phrase": phrase} for phrase in ("baseball_bat", "baseball bat")]
    with pytest.raises(DataError, match=r"train\.jsonl:1: category names collide: .*'baseball bat'.*'baseball_bat'"):
        read(grounding(*region), labels=None)


def test_a_label_map_excludes_declared_categories(read):
    with pytest.raises(ConfigError, match="mutually exclusive"):
        read(detection(CAT), categories=["cat"])


def test_declared_categories_are_numbered_from_one(read):
    content = read(detection(DOG), labels=None, categories=["cat", "dog"])
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["annotations"][0]["category_id"] == 2


@pytest.mark.parametrize("names", [[], ["cat", "Cat"], ["cat", " "]])
def test_declared_categories_are_checked(names, read):
    with pytest.raises(DataError, match=r"categories.*: (no categories|two categories have|the category has no)"):
        read(detection(DOG), labels=None, categories=names)


def test_a_file_without_any_usable_entry_is_an_error_that_counts_the_reasons(read):
    with pytest.raises(DataError, match=r"train\.jsonl: no entry could be used; found \{'missing image': 2\}"):
        read(detection(name="y.jpg"), detection(name="z.jpg"), on_bad="skip")
