"""Outlines: canonical form, simplification, masks, and agreement with pycocotools."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from coordexp.geometry import polygons

PHOTOS = Path(__file__).parents[3].parent / "shared" / "photos"
L_SHAPE = np.array([(0, 0), (10, 0), (10, 4), (4, 4), (4, 10), (0, 10)], dtype=float)


@st.composite
def stars(draw, fewest=3, most=60):
    """A simple ring around a centre, concave in general."""
    n = draw(st.integers(fewest, most))
    radii = draw(st.lists(st.floats(30, 100), min_size=n, max_size=n))
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None] + 200
    return ring[:: draw(st.sampled_from([1, -1]))]


@given(stars(), st.integers(0, 100))
def test_canonical_is_one_form_of_the_same_ring(ring, turn):
    form = polygons.canonical(ring)
    assert polygons.signed_area(form) > 0  # clockwise on the screen
    assert tuple(form[0]) == min(map(tuple, ring), key=lambda p: (p[1], p[0]))
    assert sorted(map(tuple, form)) == sorted(map(tuple, ring))
    assert shapely.Polygon(form).equals(shapely.Polygon(ring))
    for other in (np.roll(ring, turn, axis=0), ring[::-1], form):
        assert np.array_equal(polygons.canonical(other), form)


def test_clockwise_means_right_along_the_top():
    square = [(0, 0), (0, 5), (5, 5), (5, 0)]
    assert polygons.canonical(square).tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]]


@given(stars(fewest=8), st.integers(4, 20))
@settings(max_examples=60, deadline=None)
def test_simplified_outlines_are_simple_and_within_the_budget(ring, most):
    whole = shapely.Polygon(ring)
    found = polygons.simplify(whole, most)
    assert found.is_valid
    assert len(found.exterior.coords) - 1 <= most
    assert polygons.iou(found, whole) > 0.4
    vertices = {tuple(p) for p in ring}
    assert all(tuple(p) in vertices for p in found.exterior.coords)  # a choice of vertices, none invented


@given(stars(fewest=30))
@settings(max_examples=30, deadline=None)
def test_more_points_are_not_worse(ring):
    whole = shapely.Polygon(ring)
    few, many = (polygons.iou(polygons.simplify(whole, n), whole) for n in (8, 24))
    assert many >= few - 0.02


def test_concave_stays_concave():
    ring, overlap = polygons.to_ring(shapely.Polygon(L_SHAPE), 20, 0.8)
    assert np.array_equal(ring, L_SHAPE)
    assert overlap == 1
    fine = shapely.segmentize(shapely.Polygon(L_SHAPE), 0.25)
    ring, overlap = polygons.to_ring(fine, 6, 0.8)
    assert overlap > 0.999
    assert shapely.Polygon(ring).convex_hull.area > shapely.Polygon(ring).area * 1.2


def test_parts_become_one_simple_outline():
    apart = polygons.from_rings(
        [[0, 0, 20, 0, 20, 20, 0, 20], [40, 0, 60, 0, 60, 20, 40, 20], [40, 50, 60, 50, 60, 70, 40, 70]]
    )
    assert len(shapely.get_parts(apart)) == 3
    ring, overlap = polygons.to_ring(apart, 20, 0.8)
    assert shapely.Polygon(ring).is_valid
    assert overlap > 0.95
    assert shapely.Polygon(ring).bounds == pytest.approx(apart.bounds, abs=1)


def test_overlapping_parts_are_united_not_counted_twice():
    both = polygons.from_rings([[0, 0, 10, 0, 10, 10, 0, 10], [5, 0, 15, 0, 15, 10, 5, 10]])
    assert both.area == pytest.approx(150)


def test_a_poor_outline_gives_way_to_the_box():
    comb = shapely.union_all([shapely.box(i * 4, 0, i * 4 + 1, 40) for i in range(12)] + [shapely.box(0, 0, 45, 1)])
    ring, overlap = polygons.to_ring(comb, 4, 0.9)
    assert ring is None
    assert overlap < 0.9


def test_nothing_to_outline():
    assert polygons.to_ring(polygons.from_rings([]), 20, 0.8) == (None, 0.0)
    assert polygons.from_rings([[0, 0, 1, 1]]).is_empty
    assert polygons.from_rings([[0, 0, 5, 5, 9, 9]]).is_empty
    assert polygons.from_mask(np.zeros((4, 5))).is_empty
    assert polygons.crop(polygons.from_rings([[-9, 0, -5, 5, -9, 9]]), 40, 30).is_empty
    with pytest.raises(ValueError, match="at least 3"):
        polygons.to_ring(shapely.Polygon(L_SHAPE), 2, 0.8)


def test_a_self_crossing_ring_is_repaired():
    bow = polygons.from_rings([[0, 0, 10, 10, 10, 0, 0, 10]])
    assert bow.is_valid
    assert bow.area == pytest.approx(50)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_mask_becomes_its_exact_outline(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    outline = polygons.from_mask(mask)
    assert outline.area == pytest.approx(mask.sum())
    ys, xs = np.nonzero(np.ones_like(mask))
    assert (shapely.contains_xy(outline, xs + 0.5, ys + 0.5) == mask[ys, xs]).all()


def test_both_forms_of_a_run_length_mask_are_read():
    mask = np.zeros((9, 7), dtype=np.uint8, order="F")
    mask[2:6, 1:4] = 1
    mask[3, 2] = 0
    packed = coco_mask.encode(mask)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    for rle in ({"size": [9, 7], "counts": packed["counts"].decode()}, {"size": [9, 7], "counts": counts}):
        assert polygons.from_rle(rle, (7, 9)).area == mask.sum()
        assert shapely.get_num_interior_rings(shapely.get_parts(polygons.from_rle(rle, (7, 9)))[0]) == 1


def test_a_ring_outside_the_mask_is_filled_not_lost():
    doughnut = shapely.difference(shapely.box(0, 0, 30, 30), shapely.box(12, 12, 18, 18))
    ring, overlap = polygons.to_ring(doughnut, 20, 0.8)
    assert ring.tolist() == [[0, 0], [30, 0], [30, 30], [0, 30]]
    assert overlap == pytest.approx(1 - 36 / 900)


@pytest.mark.skipif(not PHOTOS.exists(), reason="the photographs are not here")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_outlines_of_photographs_agree_with_pycocotools(split):
    data = json.loads((PHOTOS / "annotations" / f"instances_{split}.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    assert data["annotations"]
    for annotation in data["annotations"]:
        height, width = sizes[annotation["image_id"]]
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], height, width)))
        outline = polygons.from_rings(annotation["segmentation"])
        exact = polygons.from_mask(mask)
        assert exact.area == mask.sum()
        fringe = outline.length  # pycocotools decides pixel by pixel along the outline
        assert abs(outline.area - mask.sum()) <= fringe
        assert polygons.from_rle(coco_mask.encode(np.asfortranarray(mask)), (width, height)).equals(exact)
        ring, overlap = polygons.to_ring(outline, 20, 0.0)
        assert len(ring) <= 20
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([ring.ravel().tolist()], height, width)))
        inter, union = (drawn & mask).sum(), (drawn | mask).sum()
        assert inter / max(union, 1) == pytest.approx(overlap, abs=0.12 if mask.sum() > 400 else 0.5)
