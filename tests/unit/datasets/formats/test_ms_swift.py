"""ms-swift's grounding lines: pixels and fractions, tags in the messages, several images; bad lines."""

import pytest
from format_cases import boxes, image_folder, json_lines, provided, skipped

from coordexp.runtime.errors import DataError

ENTRY = {"format": "ms_swift", "annotations": {"train": "train.jsonl"}, "image_dirs": {"train": ["images"]}}


def line(answer="", *, images=("a.jpg",), question="<image>Find them.", **objects):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": list(images), "objects": objects}


CAT = line("<ref-object><bbox>", ref=["cat"], bbox=[[10, 20, 30, 50]])


@pytest.fixture
def read(tmp_path):
    image_folder(tmp_path)

    def read(*lines, **options):
        (tmp_path / "train.jsonl").write_bytes(json_lines(*lines))
        return provided(tmp_path, {**ENTRY, **options})

    return read


def test_boxes_are_pixels_unless_they_are_declared_as_fractions(read):
    part = line("<ref-object><bbox>", images=["c.png"], ref=["cat"], bbox=[[0.25, 0, 0.5, 1]], bbox_type="norm1")
    content = read(CAT, part)
    assert boxes(content) == {"a.jpg": [("cat", (10, 20, 20, 30))], "c.png": [("cat", (16, 0, 16, 64))]}


@pytest.mark.parametrize("bbox_type", ["real", None])
def test_real_is_the_default(bbox_type, read):
    content = read(line("<ref-object><bbox>", ref=["cat"], bbox=[[10, 20, 30, 50]], bbox_type=bbox_type))
    assert boxes(content)["a.jpg"] == [("cat", (10, 20, 20, 30))]


A, B = [1, 2, 3, 4], [5, 6, 7, 8]
TEXTS = {
    "one reference per box": ("", "<ref-object><bbox> and <ref-object><bbox>", ["cat", "dog"], ["cat", "dog"]),
    "several boxes of one reference": ("", "<ref-object><bbox><bbox>", ["cat"], ["cat", "cat"]),
    "the reference in the question": ("Find <ref-object>.", "<bbox><bbox>", ["cat"], ["cat", "cat"]),
    "JSON answers": (
        "Find <ref-object>.",
        '[{"bbox_2d": <bbox>, "label": "<ref-object>"}, {"bbox_2d": <bbox>, "label": "<ref-object>"}]',
        ["animal", "cat", "dog"],
        ["cat", "dog"],
    ),
    "labels as text": (
        "",
        '[{"bbox_2d": <bbox>, "label": "cat"}, {"label": "dog", "bbox": <bbox>}]',
        [],
        ["cat", "dog"],
    ),
    "JSON answers without labels": ("<ref-object>", '[{"box": <bbox>}, {"box": <bbox>}]', ["cat"], ["cat", "cat"]),
    "no tags": ("What is here?", "A cat and a dog.", ["cat", "dog"], ["cat", "dog"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_box_belongs_to_the_reference_that_the_messages_give_it(case, read):
    question, answer, ref, names = TEXTS[case]
    content = read(line(answer, question=question, ref=ref, bbox=[A, B]))
    assert boxes(content)["a.jpg"] == [(names[0], (1, 2, 2, 2)), (names[1], (5, 6, 2, 2))]


def test_every_image_of_a_line_has_its_own_boxes(read):
    two = line(
        "<ref-object><bbox><ref-object><bbox>", images=["a.jpg", {"path": "c.png"}], ref=["cat", "dog"], bbox=[A, B]
    )
    two["objects"]["image_id"] = [1, 0]
    assert boxes(read(two)) == {"a.jpg": [("dog", (5, 6, 2, 2))], "c.png": [("cat", (1, 2, 2, 2))]}


def test_an_image_without_objects_has_empty_lists(read):
    assert boxes(read(line("None.", ref=[], bbox=[]))) == {"a.jpg": []}


def test_absolute_paths_inside_the_image_folder_are_read(read, tmp_path):
    name = str(tmp_path / "images" / "sub" / "b.jpg")
    assert list(boxes(read(line("<ref-object><bbox>", images=[name], ref=["cat"], bbox=[A])))) == ["sub/b.jpg"]


def test_questions_about_one_image_are_joined_on_request(read):
    content = read(CAT, CAT, line("<ref-object><bbox>", ref=["dog"], bbox=[A]), repeated_images="merge")
    assert boxes(content) == {"a.jpg": [("cat", (10, 20, 20, 30)), ("dog", (1, 2, 2, 2))]}
    assert [a["id"] for a in content["annotations"]] == [1, 2]


BAD = {
    "pixels declared as fractions": (
        line("<ref-object><bbox>", ref=["cat"], bbox=[[10, 20, 300, 50]], bbox_type="norm1"),
        "annotation",
        "box outside its unit",
        r"objects\.bbox\[0\]: expected x in 0\.\.1",
    ),
    "an unknown unit": (line("<bbox>", ref=[], bbox=[A], bbox_type="norm1000"), "image", "invalid entry", "bbox_type"),
    "a point": (line("<ref-object><bbox>", ref=["cat"], bbox=[[10, 20]]), "annotation", "point", "not a box"),
    "no reference": (line("<bbox>", ref=[], bbox=[A]), "annotation", "missing category", "None"),
    "a reference that is no text": (
        line("<ref-object><bbox>", ref=[3], bbox=[A]),
        "annotation",
        "missing category",
        "3",
    ),
    "more tags than boxes": (
        line("<ref-object><bbox>", ref=["cat"], bbox=[]),
        "image",
        "tags and objects differ",
        "0 in",
    ),
    "fewer tags than boxes": (
        line("<ref-object>", ref=["cat"], bbox=[A, A]),
        "image",
        "tags and objects differ",
        "2 in",
    ),
    "an unknown image": (
        line("<ref-object><bbox>", ref=["cat"], bbox=[A], image_id=[1]),
        "annotation",
        "unknown image",
        r"image_id\[0\]: expected 0\.\.0",
    ),
    "no images": (line("", images=[], ref=[], bbox=[]), "image", "invalid entry", "empty list"),
    "bytes as image": (line("", images=[{"bytes": "x"}], ref=[], bbox=[]), "image", "invalid entry", "None"),
    "no objects": ({"messages": [], "images": ["a.jpg"]}, "image", "no objects", "empty lists"),
    "a missing image": (
        line("<ref-object><bbox>", images=["z.jpg"], ref=["cat"], bbox=[A]),
        "image",
        "missing image",
        "z",
    ),
    "swapped corners": (
        line("<ref-object><bbox>", ref=["cat"], bbox=[[9, 2, 3, 4]]),
        "annotation",
        "swapped corners",
        "",
    ),
    "a damaged image": (line("", images=["d.jpg"], ref=[], bbox=[]), "image", "unreadable image", "d.jpg"),
    "two lines for one image": (
        line("", images=["c.png"], ref=[], bbox=[]),
        "image",
        "several entries for one image",
        "",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_with_its_line_or_a_counted_skip(case, read, tmp_path):
    (tmp_path / "images" / "d.jpg").write_bytes(b"\xff\xd8\xffnothing")
    bad, kind, reason, words = BAD[case]
    good = line("<ref-object><bbox>", images=["c.png"], ref=["dog"], bbox=[B])
    with pytest.raises(DataError, match=rf"train\.jsonl:2: {reason}(.|\n)*{words}"):
        read(good, bad)
    content = read(good, bad, on_bad="skip")
    assert skipped(content) == [(kind, reason, 2)]
    assert len(content["annotations"]) == 1
