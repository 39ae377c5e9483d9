"""Input that is readable but means something else: the conversion refuses it, or counts it and says so."""

import json

import numpy as np
import pytest
from dataset_cases import annotation_entry, balanced, convert_to, draw_image, image_entry, pixel_records, write_dataset
from PIL import Image
from pycocotools import mask as coco_mask

from coordexp.evaluation.ground_truth import load_ground_truth
from coordexp.geometry import polygons
from coordexp.runtime.errors import DataError

MASK = np.zeros((120, 160), dtype=np.uint8, order="F")
MASK[30:90, 40:100] = 1
BOX = [40, 30, 60, 60]


def test_normalised_boxes_are_refused(tmp_path):
    boxes = [annotation_entry(k, 1, [0.1 * k, 0.2, 0.3, 0.25]) for k in range(1, 4)]
    manifest = write_dataset(tmp_path, [image_entry(1)], boxes)
    for on_bad in ("error", "skip"):
        with pytest.raises(DataError, match=r"all 3 boxes are within 0..1: they are normalised"):
            convert_to(manifest, tmp_path / "out", on_bad=on_bad)


OTHER_UNITS = {
    "normalised boxes among boxes in pixels": [0.1, 0.2, 0.3, 0.25],
    "a normalised box of the whole width": [0, 0.2, 1, 0.25],
}


@pytest.mark.parametrize("case", OTHER_UNITS)
def test_a_partly_normalised_file_is_refused_or_its_boxes_are_counted(tmp_path, case, capfd):
    boxes = [annotation_entry(1, 1, BOX), annotation_entry(2, 1, OTHER_UNITS[case]), annotation_entry(3, 1, BOX)]
    manifest = write_dataset(tmp_path, [image_entry(1)], boxes)
    with pytest.raises(DataError, match=r"annotation 2.*box within 0..1, not in pixels"):
        convert_to(manifest, tmp_path / "out")
    stats = convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert stats["objects"]["dropped"] == {"box within 0..1, not in pixels": 1}
    assert balanced(stats)
    assert "1 of 3 objects dropped: box within 0..1, not in pixels (1 objects)" in capfd.readouterr().err
    scored = load_ground_truth(tmp_path / "annotations.json", "skip")
    assert scored.annotation_id.tolist() == [1, 3]


def test_corners_in_pixels_with_normalised_sizes_are_reported(tmp_path, capfd):
    boxes = [annotation_entry(1, 1, BOX), annotation_entry(2, 1, [40, 30, 0.4, 0.5])]
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], boxes), tmp_path / "out")
    assert stats["objects"]["under_one_pixel"] == 1
    assert "1 of 2 boxes are less than a pixel wide and high" in capfd.readouterr().err


SAME_FILE = {
    "same boxes": ({"file_name": "0001.jpg"}, BOX),
    "other boxes": ({"file_name": "0001.jpg"}, [5, 5, 20, 20]),
    "no boxes": ({"file_name": "0001.jpg"}, None),
    "another path": ({"file_name": "./0001.jpg"}, BOX),
    "by its URL": ({"file_name": None, "coco_url": "http://images.org/images/0001.jpg"}, BOX),
}


@pytest.mark.parametrize("case", SAME_FILE)
def test_an_image_listed_under_two_ids_is_refused_or_counted(tmp_path, case, capfd):
    name, box = SAME_FILE[case]
    boxes = [annotation_entry(1, 1, BOX)] + ([annotation_entry(2, 2, box)] if box else [])
    manifest = write_dataset(tmp_path, [image_entry(1), image_entry(2, **name)], boxes)
    with pytest.raises(DataError, match=r"image 2.*image listed twice: image 1 has the same file"):
        convert_to(manifest, tmp_path / "out")
    stats = convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert stats["images"]["dropped"] == {"image listed twice": 1}
    assert balanced(stats)
    assert [record.metadata.image_id for record in pixel_records(tmp_path / "out")] == [1]
    assert "image listed twice (1 images)" in capfd.readouterr().err


LONG_NAMES = {
    "250 characters": f"{'x' * 246}.png",
    "255 characters": f"{'x' * 251}.png",
    "246 bytes of 82 characters": f"{chr(0x5199) * 82}.png",
    "other scripts": f"bild{chr(0xE4)} {chr(0x5199)}{chr(0x1F431)}.png",
    "decomposed letters": f"bilda{chr(0x308)}.png",
    "quotes and line ends": "a'b\"c\n\td.png",
}


@pytest.mark.parametrize("case", LONG_NAMES)
def test_images_of_unusual_names_are_converted(tmp_path, case):
    images = [image_entry(1, file_name=LONG_NAMES[case])]
    stats = convert_to(write_dataset(tmp_path, images, [annotation_entry(1, 1, BOX)]), tmp_path / "out")
    [record] = pixel_records(tmp_path / "out")
    assert stats["images"]["written"] == 1
    assert (tmp_path / "out" / record.images[0]).is_file()
    assert record.metadata.file_name == LONG_NAMES[case]


def test_a_name_longer_than_the_file_system_allows_is_a_missing_image(tmp_path):
    long = image_entry(2, file_name=None, coco_url=f"http://images.org/{'x' * 300}.jpg")
    manifest = write_dataset(tmp_path, [image_entry(1), long], [])
    with pytest.raises(DataError, match=r"image 2.*missing image"):
        convert_to(manifest, tmp_path / "out")


def test_images_of_one_name_in_two_folders_are_two_images(tmp_path):
    images = [image_entry(1, file_name="a/1.jpg"), image_entry(2, file_name="b/1.jpg")]
    for folder in "ab":
        (tmp_path / "images" / folder).mkdir(parents=True)
    stats = convert_to(write_dataset(tmp_path, images, []), tmp_path / "out")
    assert stats["images"]["written"] == 2


def test_corners_in_the_place_of_sizes_are_reported(tmp_path, capfd):
    boxes = [annotation_entry(k, 1, [40 + 10 * k, 50, 120 + 5 * k, 110]) for k in range(1, 4)]
    convert_to(write_dataset(tmp_path, [image_entry(1)], boxes), tmp_path / "out")
    assert "3 of 3 boxes extend beyond their image" in capfd.readouterr().err


def test_two_images_of_similar_names_stay_two_files(tmp_path):
    images = [image_entry(1, file_name="a.png"), image_entry(2, file_name="a.png.jpg")]
    convert_to(write_dataset(tmp_path, images, []), tmp_path / "out", 48)
    first, second = pixel_records(tmp_path / "out")
    assert first.images != second.images
    pixels = [np.asarray(Image.open(tmp_path / "out" / r.images[0])).astype(int) for r in (first, second)]
    for seed, one in enumerate(pixels, 1):
        expected = np.asarray(draw_image(160, 120, seed).resize((256, 192), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(one - expected).mean() < 3


def rle(mask=MASK):
    counts = coco_mask.encode(mask)["counts"].decode()
    return {"size": list(mask.shape), "counts": counts}


BAD_MASKS = {
    "short": {"size": [120, 160], "counts": [5000, 100]},
    "long": {"size": [120, 160], "counts": [19200, 1]},
    "negative": {"size": [120, 160], "counts": [19300, -100]},
    "huge": {"size": [120, 160], "counts": [2**40, 1]},
    "fraction": {"size": [120, 160], "counts": [19199.5, 0.5]},
    "transposed": rle(np.asfortranarray(MASK.T)),
    "other size": rle(np.ones((60, 80), np.uint8, order="F")),
    "short text": {"size": [120, 160], "counts": rle()["counts"][:-3]},
    "cut text": {"size": [120, 160], "counts": rle()["counts"][:-3] + "o"},
    "endless text": {"size": [120, 160], "counts": "o" * 1000},
    "no text": {"size": [120, 160], "counts": ""},
    "strange text": {"size": [120, 160], "counts": "\u00e9\u0001~"},
    "no size": {"counts": [19200]},
    "size as text": {"size": "ab", "counts": [19200]},
    "rings of text": [["a", "b", "c", "d", "e", "f"]],
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_mask_that_cannot_be_right_is_replaced_by_the_box_and_counted(tmp_path, name, capfd):
    annotation = annotation_entry(1, 1, BOX) | {"segmentation": BAD_MASKS[name]}
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], [annotation]), tmp_path / "out", geometry="poly")
    assert stats["polygons"]["replaced_by_box"] == {"invalid segmentation": 1}
    assert pixel_records(tmp_path / "out")[0].objects[0].poly is None
    assert "1 objects keep their box: invalid segmentation" in capfd.readouterr().err


def test_an_outline_elsewhere_than_its_box_is_replaced_and_counted(tmp_path):
    masks = [rle(), [[100, 90, 150, 90, 150, 115, 100, 115]], rle()]
    boxes = [BOX, BOX, [100, 5, 50, 20]]
    entries = [
        annotation_entry(k, 1, b) | {"segmentation": m} for k, (b, m) in enumerate(zip(boxes, masks, strict=True), 1)
    ]
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], entries), tmp_path / "out", geometry="poly")
    assert stats["polygons"]["written"] == 1
    assert stats["polygons"]["replaced_by_box"] == {"contradicts the box": 2}


@pytest.mark.parametrize("seed", range(4))
def test_compressed_runs_are_read_as_pycocotools_reads_them(seed):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray((rng.random((37, 53)) < 0.1 + 0.2 * seed).astype(np.uint8))
    assert polygons.from_rle(rle(mask), (53, 37)).equals(polygons.from_mask(mask))


def test_images_of_undecided_orientation_are_counted_and_named(tmp_path, capfd):
    tag = Image.Exif()
    (tmp_path / "images").mkdir()
    for name, orientation in (("stored.jpg", 6), ("half turn.jpg", 3)):
        tag[0x0112] = orientation
        draw_image(160, 120).save(tmp_path / "images" / name, exif=tag)
    images = [image_entry(1, file_name="stored.jpg"), image_entry(2, file_name="half turn.jpg")]
    manifest = write_dataset(tmp_path, images, [])
    stats = convert_to(manifest, tmp_path / "out")
    assert stats["exif"] == {"stored": 1, "undecidable": 1, "undecidable_images": ["half turn.jpg"]}
    text = capfd.readouterr().err
    assert "half turn.jpg" in text
    assert "data.exif" in text


def test_a_dataset_whose_annotations_were_all_skipped_is_an_error(tmp_path):
    boxes = [annotation_entry(k, 1, BOX) | {"category_id": "7"} for k in (1, 2)]
    manifest = write_dataset(tmp_path, [image_entry(1)], boxes)
    with pytest.raises(DataError, match=r"no object could be used.*'invalid annotation': 2"):
        convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_dropped_data_are_reported(tmp_path, capfd):
    manifest = write_dataset(tmp_path)
    (tmp_path / "images" / "0003.jpg").unlink()
    convert_to(manifest, tmp_path / "out", on_bad="skip")
    assert "1 of 6 images and 2 of 12 objects dropped: missing image (1 images)" in capfd.readouterr().err


def test_all_problems_are_counted_and_the_first_twenty_listed(tmp_path):
    images = [image_entry(i) for i in range(1, 31)]
    boxes = [annotation_entry(i, i, [500, 500, 5, 5]) for i in range(1, 31)]
    with pytest.raises(DataError, match="30 problems, the first 20 of them") as error:
        convert_to(write_dataset(tmp_path, images, boxes), tmp_path / "out")
    text = str(error.value)
    assert text.count("box outside the image") == 20
    assert "annotation 20" in text
    assert "annotation 21" not in text


def test_every_invalid_entry_is_reported_before_an_image_is_converted(tmp_path):
    images = [image_entry(i) for i in range(1, 6)] + [image_entry(1), image_entry(8, width=0), image_entry(9)]
    boxes = [annotation_entry(1, 1, BOX), annotation_entry(2, 2, [500, 500, 5, 5])]
    boxes += [annotation_entry(3, 77, BOX), annotation_entry(4, 3, BOX, category_id=99)]
    manifest = write_dataset(tmp_path, images, boxes)
    (tmp_path / "images" / "0009.jpg").unlink()
    with pytest.raises(DataError, match="6 problems") as error:
        convert_to(manifest, tmp_path / "out")
    for problem in ("duplicate image id", "77 is not in images", "impossible size", "missing image"):
        assert problem in str(error.value)
    for problem in ("box outside the image", "unknown category"):
        assert problem in str(error.value)
    assert not list((tmp_path / "out").rglob("*.jpg"))


def test_a_corrected_problem_does_not_come_from_a_finished_chunk(tmp_path):
    manifest = write_dataset(tmp_path)
    path = tmp_path / "images" / "0003.jpg"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="missing image"):
        convert_to(manifest, tmp_path / "out")
    path.write_bytes(content)
    assert convert_to(manifest, tmp_path / "out")["images"]["written"] == 6
    assert json.loads((tmp_path / "annotations.json").read_text())["images"]
