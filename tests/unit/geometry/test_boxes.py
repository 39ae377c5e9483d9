"""Box arithmetic against plain loops and exact areas."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coordexp.geometry import boxes

numbers = st.floats(-50, 50).map(lambda value: round(value, 6))  # areas that the slow reference can hold


def ordered(raw: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(raw[:, :2], raw[:, 2:]), np.maximum(raw[:, :2], raw[:, 2:])], axis=1)


some_boxes = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=numbers).map(ordered)


def slow_giou(a, b) -> tuple[float, float]:
    shape_a, shape_b = shapely.box(*a), shapely.box(*b)
    union = shape_a.area + shape_b.area - (inter := shape_a.intersection(shape_b).area)
    iou = inter / union if union > 0 else 0.0
    hull = shapely.box(*np.minimum(a, b)[:2], *np.maximum(a, b)[2:]).area
    return iou, iou - ((hull - union) / hull if hull > 0 else 0.0)


@given(some_boxes, some_boxes)
def test_iou_and_giou_are_those_of_the_exact_areas(a, b):
    iou, giou = boxes.iou(a, b), boxes.giou(a, b)
    assert iou.shape == giou.shape == (len(a), len(b))
    for i in range(len(a)):
        for j in range(len(b)):
            expected = slow_giou(a[i], b[j])
            assert (iou[i, j], giou[i, j]) == pytest.approx(expected, abs=1e-6)


@given(some_boxes)
def test_a_box_is_itself(a):
    area = boxes.area(a)
    assert np.allclose(np.diag(boxes.iou(a, a)), np.where(area > 0, 1, 0))


@given(some_boxes)
def test_xywh_and_back(a):
    assert np.allclose(boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(a)), a, atol=1e-9)


def test_known_values():
    a, b = np.array([[0, 0, 2, 2]]), np.array([[1, 1, 3, 3], [4, 0, 6, 2]])
    assert boxes.iou(a, b)[0] == pytest.approx([1 / 7, 0])
    assert boxes.giou(a, b)[0] == pytest.approx([1 / 7 - 2 / 9, -4 / 12])
    assert boxes.area(np.array([[3, 3, 1, 5]])) == 0
    assert boxes.clip(np.array([[-5, 2, 700, 481]]), 640, 480).tolist() == [[0, 2, 640, 480]]
