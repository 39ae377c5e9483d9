"""Stage `convert_resize`: records, images and statistics; bad input."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from dataset_cases import annotation_entry, balanced, convert_to, image_entry, pixel_records, rectangle, write_dataset
from PIL import Image
from pycocotools import mask as coco_mask

from coordexp.datasets.ordering import reading_order
from coordexp.datasets.source import Source
from coordexp.datasets.tokenize import tokenize
from coordexp.datasets.validate import validate
from coordexp.records import read_records
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_json

PHOTOS = Path(__file__).parents[3].parent / "shared" / "photos"
MASK = np.zeros((120, 160), dtype=np.uint8, order="F")
MASK[30:90, 40:100] = 1


def test_a_record_holds_the_annotations_of_its_image(tmp_path):
    images = [image_entry(1, neg_category_ids=[3], not_exhaustive_category_ids=[7])]
    boxes = [annotation_entry(1, 1, [100.5, 60, 40, 30]), annotation_entry(2, 1, [10, 60, 40.25, 30], category_id=3)]
    manifest = write_dataset(tmp_path, images, boxes)
    stats = convert_to(manifest, tmp_path / "out", 48)
    (record,) = pixel_records(tmp_path / "out")
    assert (record.width, record.height) == (256, 192)  # 8 x 6 tiles
    assert record.images == ["images/images/0001.jpg"]
    assert [(o.desc, o.category_id) for o in record.objects] == [("baseball bat", 3), ("cat", 7)]
    assert record.objects[0].bbox_2d == [16, 96, 80, 144]
    assert record.objects[0].norm == pytest.approx([10 / 160, 0.5, 50.25 / 160, 0.75])
    assert all(type(v) is int for o in record.objects for v in o.bbox_2d)
    metadata = record.metadata
    assert (metadata.image_id, metadata.source_width, metadata.source_height) == (1, 160, 120)
    assert (metadata.neg_category_ids, metadata.not_exhaustive_category_ids) == ([3], [7])
    assert (metadata.dataset, metadata.file_name) == ("test", "0001.jpg")
    with Image.open(tmp_path / "out" / record.images[0]) as written:
        assert written.size == (256, 192)
    assert balanced(stats)
    assert stats["blocks"] == {"mean": 48.0, "max": 48}
    assert validate(tmp_path / "out" / "train.jsonl", open_images=True) == []


def test_every_file_is_the_same_in_another_working_directory(tmp_path, monkeypatch):
    written = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        convert_to(write_dataset(Path()), Path("out"))
        written.append({str(f): f.read_bytes() for f in sorted(Path("out").rglob("*")) if f.is_file()})
    assert any(name.endswith(".images.json") for name in written[0])
    assert [name for name in written[0] if written[0][name] != written[1].get(name)] == []


def test_shrink_does_not_resize_a_fitting_image(tmp_path):
    manifest = write_dataset(tmp_path, [{"id": 1, "file_name": "1.jpg", "width": 160, "height": 128}], [])
    convert_to(manifest, tmp_path / "out", resize="shrink")
    (record,) = pixel_records(tmp_path / "out")
    assert (tmp_path / "out" / record.images[0]).samefile(tmp_path / "images" / "1.jpg")


def test_unrounded_geometry_keeps_the_source_exactly(tmp_path):
    manifest = write_dataset(tmp_path, [image_entry(1)], [annotation_entry(1, 1, [10.37, 20.11, 33.3, 7.77])])
    convert_to(manifest, tmp_path / "out", 48, round_geometry=False)
    (record,) = pixel_records(tmp_path / "out")
    back = np.array(record.objects[0].bbox_2d) / [256, 192, 256, 192] * [160, 120, 160, 120]
    assert back == pytest.approx([10.37, 20.11, 43.67, 27.88], abs=1e-9)


def test_the_norm_does_not_depend_on_rounding_or_budget(tmp_path):
    manifest = write_dataset(tmp_path)
    for i, options in enumerate(({}, {"round_geometry": False}, {"resize": "shrink"})):
        convert_to(manifest, tmp_path / str(i), 16 + 9 * i, **options)
    norms = [[o.norm for r in pixel_records(tmp_path / str(i)) for o in r.objects] for i in range(3)]
    assert norms[0] == norms[1] == norms[2]


def test_tiny_boxes_keep_a_pixel_and_stay_inside(tmp_path):
    boxes = [annotation_entry(1, 1, [159.9, 119.9, 0.1, 0.1]), annotation_entry(2, 1, [0, 60, 0.01, 0.01])]
    convert_to(write_dataset(tmp_path, [image_entry(1)], boxes), tmp_path / "out")
    (record,) = pixel_records(tmp_path / "out")
    width, height = record.width, record.height
    assert [o.bbox_2d for o in record.objects] == [
        [0, height // 2, 1, height // 2 + 1],
        [width - 1, height - 1, width, height],
    ]


def test_boxes_are_clipped_and_counted(tmp_path):
    boxes = [
        annotation_entry(1, 1, [-10, -5, 50, 50]),
        annotation_entry(2, 1, [150, 100, 30, 40]),
        annotation_entry(3, 1, [5, 5, 9, 9]),
    ]
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], boxes), tmp_path / "out")
    (record,) = pixel_records(tmp_path / "out")
    assert [o.norm for o in record.objects] == [
        [0, 0, 40 / 160, 45 / 120],
        pytest.approx([5 / 160, 5 / 120, 14 / 160, 14 / 120]),
        [150 / 160, 100 / 120, 1, 1],
    ]
    assert stats["objects"]["clipped"] == 2


def test_objects_come_top_to_bottom_then_left_to_right(tmp_path):
    rng = np.random.default_rng(0)
    boxes = [annotation_entry(k, 1 + k % 3, [*rng.integers(0, 8, 2) * 10.0, 20, 20]) for k in range(60)]
    convert_to(write_dataset(tmp_path, [image_entry(1), image_entry(2), image_entry(3)], boxes), tmp_path / "out")
    for record in pixel_records(tmp_path / "out"):
        keys = [(o.norm[1], o.norm[0], o.norm[3], o.norm[2]) for o in record.objects]
        assert keys == sorted(keys)
        own = np.array([o.norm for o in record.objects])
        assert reading_order(own).tolist() == list(range(len(own)))


def test_random_order_is_seeded_and_differs_between_images(tmp_path):
    boxes = [annotation_entry(k, 1 + k % 2, [float(k), 10, 20, 20]) for k in range(40)]
    manifest = write_dataset(tmp_path, [image_entry(1), image_entry(2)], boxes)
    orders = []
    for i, seed in enumerate((1, 1, 2)):
        convert_to(manifest, tmp_path / str(i), ordering="random", seed=seed)
        orders.append([[o.norm[0] for o in r.objects] for r in pixel_records(tmp_path / str(i))])
    assert orders[0] == orders[1] != orders[2]
    ranks = [np.argsort(np.argsort(own)).tolist() for own in orders[0]]
    assert ranks[0] != ranks[1]
    assert ranks[0] != sorted(ranks[0])


@pytest.mark.parametrize("crowd", ["skip", "keep"])
def test_crowds_are_counted_or_kept(tmp_path, crowd):
    packed = coco_mask.encode(MASK)
    rle = {"size": packed["size"], "counts": packed["counts"].decode()}
    boxes = [annotation_entry(1, 1, [40, 30, 60, 60], iscrowd=1), annotation_entry(2, 1, [5, 5, 9, 9], iscrowd=0)]
    boxes[0]["segmentation"] = rle
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], boxes, format="coco"), tmp_path / "out", crowd=crowd)
    (record,) = pixel_records(tmp_path / "out")
    assert [o.iscrowd for o in record.objects] == ([False] if crowd == "skip" else [False, True])
    assert stats["objects"]["dropped"] == ({"crowd": 1} if crowd == "skip" else {})
    assert record.metadata.not_exhaustive_category_ids == ([7] if crowd == "skip" else [])  # not known to be absent
    assert balanced(stats)


@pytest.mark.parametrize("keep_empty", [True, False])
def test_images_without_objects(tmp_path, keep_empty):
    manifest = write_dataset(tmp_path, [image_entry(1), image_entry(2)], [annotation_entry(1, 2, [5, 5, 9, 9])])
    stats = convert_to(manifest, tmp_path / "out", keep_empty=keep_empty)
    assert [r.metadata.image_id for r in pixel_records(tmp_path / "out")] == ([1, 2] if keep_empty else [2])
    assert stats["images"]["without_objects"] == 1
    assert stats["images"]["dropped"] == ({} if keep_empty else {"no objects": 1})


def test_raw_descriptions(tmp_path):
    convert_to(
        write_dataset(tmp_path, [image_entry(1)], [annotation_entry(1, 1, [5, 5, 9, 9], category_id=3)]),
        tmp_path / "o",
        desc="raw",
    )
    assert pixel_records(tmp_path / "o")[0].objects[0].desc == "baseball_bat"


def polygon_cases() -> list[dict]:
    packed = coco_mask.encode(MASK)
    wave = [(40 + 30 * np.cos(a) * (1 + 0.3 * np.cos(9 * a)), 60 + 30 * np.sin(a)) for a in np.linspace(0, 6.2, 90)]
    parts = [*rectangle(10, 10, 30, 30), *rectangle(60, 10, 30, 30)]
    return [
        annotation_entry(
            1, 1, [40, 30, 60, 60], segmentation={"size": packed["size"], "counts": packed["counts"].decode()}
        ),
        annotation_entry(2, 1, [1, 30, 78, 60], segmentation=[np.ravel(wave).tolist()]),
        annotation_entry(3, 1, [10, 10, 80, 30], segmentation=parts),
        annotation_entry(4, 1, [5, 5, 9, 9], segmentation=[]),
        annotation_entry(5, 1, [100, 100, 0.2, 0.2]),
    ]


def test_polygons_of_masks_parts_and_curves(tmp_path):
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], polygon_cases()), tmp_path / "out", geometry="poly")
    (record,) = pixel_records(tmp_path / "out")
    assert len(record.objects) == 5  # an instance of two parts is one object
    shapes = [o for o in record.objects if o.poly is not None]
    assert len(shapes) == 3
    assert all(6 <= len(o.poly) <= 40 and len(o.poly) == len(o.norm) for o in shapes)
    for o in shapes:
        points = np.reshape(o.norm, (-1, 2))
        assert tuple(points[0]) == min(map(tuple, points), key=lambda p: (p[1], p[0]))
    square = next(o for o in shapes if len(o.poly) == 8)
    assert square.norm == pytest.approx(
        [40 / 160, 30 / 120, 100 / 160, 30 / 120, 100 / 160, 90 / 120, 40 / 160, 90 / 120]
    )
    assert stats["polygons"]["written"] == 3
    assert stats["polygons"]["multi_part"] == 1
    assert stats["polygons"]["mean_iou_with_mask"] > 0.9
    assert stats["polygons"]["replaced_by_box"] == {"no segmentation": 1, "thinner than a pixel or bin": 1}
    assert validate(tmp_path / "out" / "train.jsonl") == []


def test_a_poor_polygon_is_replaced_by_its_box(tmp_path):
    manifest = write_dataset(tmp_path, [image_entry(1)], polygon_cases()[1:2])
    stats = convert_to(manifest, tmp_path / "out", geometry="poly", poly_max_points=4, poly_min_iou=0.99)
    assert pixel_records(tmp_path / "out")[0].objects[0].bbox_2d is not None
    assert stats["polygons"]["replaced_by_box"] == {"low IoU with the mask": 1}


def test_the_round_trip_is_that_of_the_emitted_tokens(tmp_path):
    rng = np.random.default_rng(3)
    boxes = [annotation_entry(k, 1, [*rng.uniform(0, 100, 2), *rng.uniform(0.5, 20, 2)]) for k in range(200)]
    stats = convert_to(write_dataset(tmp_path, [image_entry(1)], boxes), tmp_path / "out")
    tokenize(tmp_path / "out" / "train.jsonl", tmp_path / "out" / "train.coord.jsonl")
    (record,) = read_records(tmp_path / "out" / "train.coord.jsonl", "token")
    from coordexp.geometry.boxes import iou
    from coordexp.records import coord_bin

    overlaps = [
        iou(np.array([o.norm]), np.array([[coord_bin(t) / 999 for t in o.bbox_2d]]))[0, 0] for o in record.objects
    ]
    row = stats["round_trip"]["all"]
    assert row["objects"] == 200
    assert row["share_iou_0.95"] == pytest.approx(np.mean(np.array(overlaps) >= 0.95))
    assert row["mean_iou"] == pytest.approx(np.mean(overlaps))
    assert sum(stats["round_trip"][s]["objects"] for s in ("small", "medium", "large")) == 200


def test_a_folder_of_other_files_is_never_emptied(tmp_path):
    manifest = write_dataset(tmp_path)
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "holiday.jpg").touch()
    with pytest.raises(DataError, match="not created by CoordExp"):
        convert_to(manifest, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "holiday.jpg").exists()


def test_two_splits_cannot_share_a_folder(tmp_path):
    manifest = write_dataset(tmp_path)
    convert_to(manifest, tmp_path / "out")
    source = msgspec.json.decode(manifest.read_bytes(), type=Source)
    write_json(manifest, msgspec.structs.replace(source, split="val"))
    with pytest.raises(DataError, match="belongs to another split"):
        convert_to(manifest, tmp_path / "out")
