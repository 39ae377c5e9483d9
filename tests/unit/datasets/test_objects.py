"""Annotations to objects: clipping, rounding, order, reasons for skipping, incomplete categories, polygons."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.datasets.annotation_entries import ImageEntry
from coordexp.datasets.annotation_index import AnnotationColumns
from coordexp.datasets.objects import ObjectBatch, ObjectOptions, build_objects, to_pixels
from coordexp.geometry.norm1000 import encode_box

WIDTH, HEIGHT = 160, 120
DESCRIPTIONS = {3: "baseball bat", 7: "cat"}


def columns(rows, offsets, spans=None) -> AnnotationColumns:
    """Columns of (category, [x, y, w, h], crowd) rows; ids are 1, 2, ..."""
    return AnnotationColumns(
        ids=np.arange(1, len(rows) + 1),
        categories=np.array([row[0] for row in rows], dtype=np.int64),
        boxes=np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
        crowd=np.array([row[2] for row in rows], dtype=bool),
        spans=np.zeros((len(rows), 2), np.int64) if spans is None else np.array(spans),
        offsets=np.array(offsets),
    )


def convert(*images, sizes=None, fd=-1, spans=None, **options) -> ObjectBatch:
    """Objects of images with annotations [(category, box, crowd)], each WIDTH x HEIGHT, resized to `sizes`."""
    entries = [ImageEntry(n, WIDTH, HEIGHT, f"{n}.jpg") for n in range(1, len(images) + 1)]
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in images])]).astype(int)
    rows = columns([row for own in images for row in own], offsets, spans)
    sizes = sizes or [(2 * WIDTH, 2 * HEIGHT)] * len(images)
    return build_objects(entries, rows, sizes, DESCRIPTIONS, ObjectOptions(**options), fd)


def box(x, y, w, h, category=7, crowd=False):
    return category, [x, y, w, h], crowd


def test_boxes_are_scaled_to_the_resized_image_and_keep_exact_fractions():
    batch = convert([box(10, 20, 30.25, 40)])
    ((obj,),) = batch.objects
    assert (obj.desc, obj.category_id) == ("cat", 7)
    assert obj.bbox_2d == [20, 40, 81, 120]  # 80.5 rounds up
    assert obj.norm == pytest.approx([10 / WIDTH, 20 / HEIGHT, 40.25 / WIDTH, 60 / HEIGHT])
    assert (batch.counts["written"], batch.counts["clipped"]) == (1, 0)


def test_boxes_are_clipped_to_the_image_and_counted():
    batch = convert([box(-10, -10, 30, 30), box(150, 100, 40, 40), box(0, 0, WIDTH, HEIGHT)])
    assert [o.bbox_2d for o in batch.objects[0]] == [[0, 0, 40, 40], [0, 0, 320, 240], [300, 200, 320, 240]]
    assert batch.counts["clipped"] == 2


def test_without_rounding_pixels_are_the_scaled_floats():
    ((obj,),) = convert([box(1.3, 2.7, 10.1, 20.9)], round_geometry=False).objects
    assert obj.bbox_2d == pytest.approx([2.6, 5.4, 22.8, 47.2])


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=8),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
)
@settings(max_examples=200, deadline=None)
def test_rounded_boxes_keep_a_pixel_and_stay_in_the_image(corners, size):
    norm = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners])
    sizes = np.tile(np.array(size, dtype=np.float64), (len(norm), 1))
    pixels = to_pixels(norm, sizes, rounded=True)
    assert (pixels[:, :2] < pixels[:, 2:]).all()
    assert (pixels >= 0).all() and (pixels <= np.tile(size, 2)).all()
    exact = norm * np.tile(sizes, 2)
    assert (np.abs(pixels - exact) <= 1.5 + 1e-9).all()


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_rounding_to_bins_is_that_of_the_codec(corners):
    norm = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]) / 1000
    bins = to_pixels(norm, np.full((len(norm), 2), 999.0), rounded=True)
    assert bins.tolist() == [encode_box(row) for row in norm.tolist()]


def test_objects_are_sorted_top_to_bottom_then_left_to_right_within_their_image():
    first = [box(50, 60, 10, 10), box(80, 20, 10, 10), box(20, 20, 10, 10)]
    batch = convert(first, [], [box(5, 5, 10, 10)])
    assert [[o.bbox_2d[:2] for o in own] for own in batch.objects] == [
        [[40, 40], [160, 40], [100, 120]],
        [],
        [[10, 10]],
    ]


def test_random_order_depends_on_seed_and_image_only():
    rows = [box(10 * i, 5, 8, 8) for i in range(8)]
    one, two = (convert(rows, rows, ordering="random", seed=1) for _ in range(2))
    other = convert(rows, rows, ordering="random", seed=2)
    order = [[o.bbox_2d[0] for o in own] for own in one.objects]
    assert order == [[o.bbox_2d[0] for o in own] for own in two.objects]
    assert order[0] != order[1] and sorted(order[0]) == sorted(order[1])
    assert order != [[o.bbox_2d[0] for o in own] for own in other.objects]


def test_every_reason_to_leave_an_annotation_out():
    rows = [
        box(10, 10, 20, 20),
        box(10, 10, 20, 20, category=99),
        box(10, 10, 20, 20, crowd=True),
        box(float("nan"), 10, 20, 20),
        box(10, 10, 0, 20),
        box(10, 10, 20, -1),
        box(200, 10, 20, 20),
        box(WIDTH, 10, 20, 20),
    ]
    batch = convert(rows)
    assert [(s.annotation_id, s.reason) for s in batch.skipped] == [(3, "crowd"), (5, "empty box"), (6, "empty box")]
    assert [(s.annotation_id, s.reason) for s in batch.bad] == [
        (2, "unknown category"),
        (4, "non-finite box"),
        (7, "box outside the image"),
        (8, "box outside the image"),
    ]
    assert all((s.kind, s.image_id, s.file) == ("annotation", 1, "1.jpg") for s in (*batch.skipped, *batch.bad))
    assert "bbox [200.0, 10.0, 20.0, 20.0] in 160x120" in batch.bad[2].detail
    assert batch.counts["written"] == len(batch.objects[0]) == 1


def test_crowds_can_be_kept():
    ((obj,),) = convert([box(10, 10, 20, 20, crowd=True)], crowd="keep").objects
    assert obj.iscrowd


def test_a_category_that_loses_an_annotation_is_incomplete_in_that_image_only():
    lost = [box(10, 10, 20, 20), box(10, 10, 0, 5), box(10, 10, 20, 20, category=3, crowd=True)]
    unknown = [box(10, 10, 20, 20, category=99), box(300, 10, 20, 20, category=3)]
    batch = convert(lost, [box(5, 5, 5, 5)], unknown)
    assert batch.incomplete == [{3, 7}, set(), {3}]


def test_no_annotations_at_all():
    batch = convert([], [])
    assert batch.objects == [[], []] and batch.incomplete == [set(), set()]
    assert batch.counts["written"] == 0


def test_a_segmentation_becomes_a_polygon_or_gives_way_to_the_box(tmp_path):
    triangle = {"segmentation": [[10, 10, 50, 10, 10, 50]]}
    elements = [triangle, {}, {"segmentation": [[10, 10, 50, 10, 50, 10]]}]
    texts = [json.dumps(element).encode() for element in elements]
    path = tmp_path / "elements"
    path.write_bytes(b"".join(texts))
    ends = np.cumsum([len(text) for text in texts])
    spans = np.stack([ends - [len(text) for text in texts], ends], axis=1)
    with path.open("rb") as handle:
        rows = [box(10, 10, 40, 40), box(60, 60, 20, 20), box(10, 70, 40, 20)]
        batch = convert(rows, fd=handle.fileno(), spans=spans, geometry="poly")
    polygon, *boxes = batch.objects[0]
    assert polygon.poly == [20, 20, 100, 20, 20, 100] and polygon.bbox_2d is None
    assert polygon.norm == pytest.approx([10 / 160, 10 / 120, 50 / 160, 10 / 120, 10 / 160, 50 / 120])
    assert all(o.poly is None for o in boxes)
    assert (batch.counts["polygons"], batch.counts["poly:no segmentation"]) == (1, 2)


def test_round_trips_are_counted_by_size_in_source_pixels():
    counts = convert([box(1, 1, 8, 8), box(10, 10, 50, 50), box(0, 0, 150, 110)]).counts
    assert [counts[f"{size}:objects"] for size in ("small", "medium", "large")] == [1, 1, 1]
    assert counts["large:good"] == 1
