"""The codec: golden values, and what holds for every box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordexp.geometry import norm1000
from coordexp.geometry.boxes import iou

unit = st.floats(0, 1)
pairs = st.tuples(unit, unit).map(sorted)


def test_golden_values():
    norm = np.array([100, 100, 200, 200]) / [640, 480, 640, 480]
    assert norm1000.encode_box(norm) == [156, 208, 312, 416]
    assert norm1000.encode_box(norm, "norm1000_legacy", (640, 480)) == [156, 208, 313, 418]


def test_the_borders_are_clamped_and_1000_is_never_emitted():
    assert norm1000.encode([640 / 640, -0.4 / 640]).tolist() == [999, 0]
    assert norm1000.encode_box([0.5, 0.5, 1, 1], "norm1000_legacy", (640, 480))[2:] == [999, 999]
    assert norm1000.encode([7.0, -3.0]).tolist() == [999, 0]


def test_rounding_is_half_up_for_even_and_odd_bins():
    assert norm1000.encode([0.5 / 999, 1.5 / 999, 2.5 / 999]).tolist() == [1, 2, 3]


@given(pairs, pairs)
def test_a_box_keeps_at_least_one_bin(xs, ys):
    x1, y1, x2, y2 = norm1000.encode_box([xs[0], ys[0], xs[1], ys[1]])
    assert 0 <= x1 < x2 <= 999
    assert 0 <= y1 < y2 <= 999


@given(st.lists(unit, min_size=1, max_size=8))
def test_decoding_is_within_half_a_bin(values):
    assert np.abs(norm1000.decode(norm1000.encode(values)) - values).max() <= 0.5 / 999 + 1e-12


@given(st.integers(0, 999))
def test_every_bin_comes_back(k):
    assert norm1000.encode(norm1000.decode([k])).tolist() == [k]


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_codec_is_monotone(a, b):
    low, high = norm1000.encode(sorted((a, b)))
    assert low <= high


@given(pairs, pairs, st.integers(2, 2000), st.integers(2, 2000))
def test_legacy_is_valid_and_encloses_what_norm1000_says(xs, ys, width, height):
    box = [xs[0], ys[0], xs[1], ys[1]]
    x1, y1, x2, y2 = norm1000.encode_box(box, "norm1000_legacy", (width, height))
    assert 0 <= x1 < x2 <= 999
    assert 0 <= y1 < y2 <= 999


def test_legacy_needs_a_size():
    with pytest.raises(ValueError, match="needs an image of at least 2x2"):
        norm1000.encode_box([0, 0, 1, 1], "norm1000_legacy")


def test_rounding_beats_flooring_on_boxes_of_natural_sizes():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.9, (4000, 2))
    side = np.exp(rng.uniform(np.log(0.01), np.log(0.5), (4000, 2)))
    norm = np.concatenate([low, np.minimum(low + side, 1)], axis=1)
    rounded = norm1000.decode([norm1000.encode_box(b) for b in norm])
    floored = norm1000.decode(np.floor(norm * 999))
    share = [
        np.mean([iou(a[None], b[None])[0, 0] >= 0.95 for a, b in zip(norm, back, strict=True)])
        for back in (rounded, floored)
    ]
    assert share[0] > 0.85
    assert share[0] > share[1] + 0.05
