"""Bad input to the conversion: an error that names file and id, or a counted and listed skip."""

import pytest
from dataset_cases import CATEGORIES, annotation_entry, balanced, convert_to, draw_image, image_entry, write_dataset

from coordexp.datasets.convert import ConvertOptions
from coordexp.datasets.source import load_source
from coordexp.datasets.validate import validate
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import sha256_file


def bad_inputs() -> dict:
    """name -> (images, annotations, spoil(folder), words of the error, dropped objects, dropped images)."""
    good = [annotation_entry(1, 1, [5, 5, 9, 9]), annotation_entry(2, 2, [5, 5, 9, 9])]
    two = [image_entry(1), image_entry(2)]

    def remove(folder):
        (folder / "images" / "0002.jpg").unlink()

    def truncate(folder):
        path = folder / "images" / "0002.jpg"
        path.write_bytes(path.read_bytes()[:1500])

    def replace(folder):
        draw_image(40, 30).save(folder / "images" / "0002.jpg")

    def more(bbox, **changes):
        return [*good, {**annotation_entry(9, 2, [5, 5, 9, 9]), "bbox": bbox, **changes}]

    nameless = [image_entry(1), {"id": 2, "file_name": "0001.jpg"}]
    ninth, second = "annotation 9", "image 2"
    return {
        "missing": (two, good, remove, ["missing image", "0002.jpg", second], 1, 1),
        "truncated": (two, good, truncate, ["unreadable image", "0002.jpg", second, "truncated"], 1, 1),
        "size": (two, good, replace, ["size differs from the annotation", "40x30", "160x120", second], 1, 1),
        "no width": (nameless, good, None, [second, "width"], 1, 1),
        "zero width": ([image_entry(1), image_entry(2, width=0)], good, remove, ["impossible size", second], 1, 1),
        "outside": (two, more([200, 5, 9, 9]), None, ["box outside the image", ninth], 1, 0),
        "nan": (two, more([float("nan"), 5, 9, 9]), None, ["invalid annotation", ninth], 1, 0),
        "infinite": (two, more([5, 5, 9, float("inf")]), None, ["invalid annotation", ninth], 1, 0),
        "short box": (two, more([1, 2]), None, ["invalid annotation", "bbox", ninth], 1, 0),
        "category": (two, more([5, 5, 9, 9], category_id=99), None, ["unknown category", ninth], 1, 0),
        "orphan": (two, more([5, 5, 9, 9], image_id=77), None, [ninth, "77 is not in images"], 1, 0),
        "repeated annotation": (two, more([1, 1, 9, 9], id=2), None, ["duplicate annotation id", "annotation 2"], 1, 0),
        "repeated image": ([*two, image_entry(2)], good, None, ["duplicate image id", second], 0, 1),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_an_error_or_a_listed_skip(tmp_path, name):
    images, annotations, spoil, words, objects, dropped = bad_inputs()[name]
    manifest = write_dataset(tmp_path, images, annotations)
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(DataError) as error:
        convert_to(manifest, tmp_path / "out")
    for word in [*words, "annotations.json", "data.on_bad: skip"]:
        assert word in str(error.value)
    assert not (tmp_path / "out" / "train.jsonl").exists()
    stats = convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert sum(stats["objects"]["dropped"].values()) == objects
    assert sum(stats["images"]["dropped"].values()) == dropped
    assert balanced(stats)
    (skip,) = stats["skipped"]
    expected = 9 if "annotation 9" in words else 2
    assert skip.get("annotation_id", skip.get("image_id")) == expected
    assert validate(tmp_path / "out" / "train.jsonl", open_images=True) == []


def test_an_image_without_a_name_is_bad_input(tmp_path):
    manifest = write_dataset(tmp_path, [image_entry(1), {"id": 2, "width": 5, "height": 5}], [])
    with pytest.raises(DataError, match=r"image 2.*neither file_name nor coco_url"):
        convert_to(manifest, tmp_path / "out")
    assert convert_to(manifest, tmp_path / "out", on_bad="skip")["images"]["dropped"] == {"no file name": 1}


def test_a_name_outside_the_folder_is_always_an_error(tmp_path):
    (tmp_path / "annotations.json").touch()
    manifest = write_dataset(tmp_path, [{**image_entry(1), "file_name": "../annotations.json"}], [])
    for on_bad in ("error", "skip"):
        with pytest.raises(DataError, match="invalid file name"):
            convert_to(manifest, tmp_path / "out", on_bad=on_bad)


def test_empty_boxes_are_counted_and_listed_not_errors(tmp_path):
    """COCO itself has some: a box without area is nobody's mistake to correct."""
    boxes = [annotation_entry(1, 1, [5, 5, 9, 9]), annotation_entry(2, 1, [5, 5, 9, 0])]
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], boxes), tmp_path / "out")
    assert stats["objects"]["dropped"] == {"empty box": 1}
    assert stats["skipped"][0]["annotation_id"] == 2


def test_a_category_without_a_name(tmp_path):
    boxes = [annotation_entry(1, 1, [5, 5, 9, 9]), annotation_entry(2, 1, [5, 5, 9, 9], category_id=8)]
    manifest = write_dataset(tmp_path, [image_entry(1)], boxes, [*CATEGORIES, {"id": 8, "name": ""}])
    with pytest.raises(DataError, match="category 8 has no name"):
        convert_to(manifest, tmp_path / "out")
    stats = convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert stats["objects"]["dropped"] == {"unknown category": 1}


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    manifest = write_dataset(tmp_path, [image_entry(1)], [])
    (tmp_path / "images" / "0001.jpg").unlink()
    with pytest.raises(DataError, match=r"no image could be used.*missing image"):
        convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_an_empty_image_list_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"annotations\.json: images: the list is empty"):
        convert_to(write_dataset(tmp_path, [], []), tmp_path / "out", on_bad="skip")


def test_wrong_options_and_manifests_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"data: .*factor"):
        ConvertOptions.from_config({"factor": "32", "tiny": 5})
    assert ConvertOptions.from_config({"factor": 28, "tiny": 5, "num_workers": None}) == ConvertOptions(factor=28)
    with pytest.raises(ConfigError, match="resize"):
        convert_to(write_dataset(tmp_path), tmp_path / "out", resize="stretch")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"other\.json: not a source manifest"):
        convert_to(tmp_path / "other.json", tmp_path / "out")


def test_annotations_that_have_changed_since_the_manifest_are_an_error(tmp_path):
    """Records and numbers of one run must not come from two versions of a file."""
    manifest = write_dataset(tmp_path)
    path = tmp_path / "annotations.json"
    recorded = load_source(manifest).annotations_sha256
    path.write_text(path.read_text() + "\n")
    for use in (load_source, lambda m: convert_to(m, tmp_path / "out")):
        with pytest.raises(DataError, match=r"annotations\.json.*have changed") as error:
            use(manifest)
        for part in (recorded, sha256_file(path), f"delete {manifest}"):
            assert part in str(error.value)
    assert not (tmp_path / "out").exists()
    path.unlink()
    with pytest.raises(DataError, match=r"annotations\.json: file not found"):
        load_source(manifest)
