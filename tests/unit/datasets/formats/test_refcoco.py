"""RefCOCO as JSON: phrases with one, several or no objects; pickles are refused; bad entries are errors or skips."""

import json
import pickle

import pytest
from format_cases import boxes, image_folder, provided, skipped

from coordexp.runtime.errors import DataError

IMAGES = [
    {"id": 11, "file_name": "a.jpg", "width": 160, "height": 120},
    {"id": 12, "file_name": "sub/b.jpg", "width": 200, "height": 100},
]
ANNOTATIONS = [
    {"id": 101, "image_id": 11, "category_id": 5, "bbox": [10, 20, 30, 40], "iscrowd": 0},
    {"id": 102, "image_id": 11, "category_id": 5, "bbox": [80, 20, 30, 40], "iscrowd": 0},
    {"id": 103, "image_id": 12, "category_id": 6, "bbox": [1, 2, 30, 40], "iscrowd": 0},
]
INSTANCES = {
    "images": IMAGES,
    "annotations": ANNOTATIONS,
    "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}],
}
ENTRY = {
    "format": "refcoco",
    "refs": "refs(unc).json",
    "splits": {"train": "train", "testA": "testA"},
    "image_dirs": {"train": ["images"], "testA": ["images"]},
}


def ref(ann_id, *sentences, image=11, split="train"):
    sentences = [{"tokens": sent.split(), "raw": sent, "sent_id": n, "sent": sent} for n, sent in enumerate(sentences)]
    return {"ref_id": 1, "ann_id": ann_id, "image_id": image, "split": split, "sentences": sentences, "category_id": 5}


@pytest.fixture
def read(tmp_path):
    image_folder(tmp_path)

    def read(*refs, split="train", instances=INSTANCES, **options):
        (tmp_path / "refs(unc).json").write_text(json.dumps(refs, indent=1))
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        return provided(tmp_path, {**ENTRY, **options}, split)

    return read


def phrases(content):
    return {i["id"]: [(p["text"], p["annotation_ids"]) for p in i["phrases"]] for i in content["images"]}


def test_sentences_are_phrases_with_the_ids_of_the_original_annotations(read):
    content = read(ref(101, "the left dog", "dog on the left"), ref(103, "cat", image=12), ref(102, "right dog"))
    both = [("the left dog", [101]), ("dog on the left", [101]), ("right dog", [102])]
    assert phrases(content) == {11: both, 12: [("cat", [103])]}
    assert boxes(content)["a.jpg"] == [("dog", (10, 20, 30, 40)), ("dog", (80, 20, 30, 40))]


def test_phrases_of_several_objects_and_of_none_are_read_as_in_grefcoco(read):
    content = read(ref([101, 102], "both dogs"), ref([-1], "the horse"), ref([], "a boat"), ref(-1, "a ship"))
    assert phrases(content)[11] == [("both dogs", [101, 102]), ("the horse", []), ("a boat", []), ("a ship", [])]


def test_a_split_has_the_images_that_its_own_phrases_are_about(read):
    refs = [ref(101, "the left dog"), ref(103, "cat", image=12, split="testA")]
    content = read(*refs, split="testA")
    assert phrases(content) == {12: [("cat", [103])]} and list(boxes(content)) == ["sub/b.jpg"]


@pytest.mark.parametrize("name", ["refs(unc).p", "refs.json"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(name, tmp_path):
    image_folder(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps([ref(101, "dog")], protocol=0 if name.endswith("p") else 4))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    with pytest.raises(DataError, match=r"is a pickle, expected JSON(.|\n)*json\.dump\(pickle\.load") as error:
        provided(tmp_path, {**ENTRY, "refs": name})
    command = str(error.value).split('python -c "')[1].split('"')[0].replace("'refs", f"'{tmp_path}/refs")
    exec(command)
    assert json.loads((tmp_path / name).with_suffix(".json").read_text())[0]["ann_id"] == 101


BAD = {
    "an image that is missing from the instances": (ref(101, "dog", image=99), "unknown image"),
    "an annotation of another image": (ref(103, "dog"), "unknown annotation"),
    "an empty sentence": (ref(101, " "), "invalid phrase"),
    "a special token": (ref(101, "the <|im_end|>"), "invalid phrase"),
    "no sentences": ({"image_id": 11, "ann_id": 101, "split": "train"}, "invalid entry"),
    "an annotation id that is a number with decimals": ({**ref(101, "dog"), "ann_id": 1.5}, "invalid entry"),
    "a sentence without text": ({**ref(101), "sentences": [{"raw": "dog"}]}, "invalid entry"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_entries_are_errors_with_file_and_line_or_counted_skips(case, read, tmp_path):
    bad, reason = BAD[case]
    with pytest.raises(DataError, match=reason) as error:
        read(ref(102, "right dog"), bad)
    line = json.dumps([ref(102, "right dog")], indent=1).count("\n") + 1
    assert f"refs(unc).json:{line}: {reason}" in str(error.value)
    content = read(ref(102, "right dog"), bad, on_bad="skip")
    assert phrases(content)[11] == [("right dog", [102])]
    [(kind, found, at)] = skipped(content)
    assert (kind, found, at) == ("phrase", reason, line)


def test_every_invalid_annotation_of_an_image_is_counted(read):
    bad = [{**ANNOTATIONS[0], "id": n, "bbox": None} for n in (901, 902)]
    instances = {**INSTANCES, "annotations": [*ANNOTATIONS, *bad]}
    content = read(ref(101, "dog"), on_bad="skip", instances=instances)
    assert [kind for kind, _, _ in skipped(content)] == ["annotation", "annotation"]


def test_a_split_that_the_list_lacks_names_those_it_has(read):
    with pytest.raises(DataError, match=r"no usable phrase in this split(.|\n)*train"):
        read(ref(101, "dog"), splits={"train": "trainval", "testA": "testA"})
