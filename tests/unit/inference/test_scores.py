"""Coordinates of both codecs, duplicates, and the terms of a score."""

from __future__ import annotations

import pytest

from coordexp.inference.scores import decode_coords, drop_duplicates
from coordexp.records import Detection


def test_legacy_coordinates_are_decoded_over_size_minus_one():
    assert decode_coords([999, 999, 0, 0], (640, 480), "norm1000_legacy") == pytest.approx([639 / 640, 479 / 480, 0, 0])
    assert decode_coords([999, 0], (640, 480), "norm1000") == [1.0, 0.0]


def test_the_best_of_duplicates_with_the_same_description_is_kept(predictor):

    box = [0.1, 0.1, 0.5, 0.5]
    found = [
        Detection("cat", box, 0.3),
        Detection("cat", [0.1, 0.1, 0.5, 0.51], 0.8),
        Detection("dog", box, 0.1),
        Detection("cat", [0.6, 0.6, 0.9, 0.9], 0.2),
    ]
    kept, dropped = drop_duplicates(found, 0.9)
    assert kept == found[1:] and dropped == 1
    assert drop_duplicates(found, 0.99) == (found, 0)
