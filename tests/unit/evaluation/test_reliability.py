"""Calibration error of counted examples."""

from __future__ import annotations

import numpy as np
import pytest

from coordexp.evaluation.reliability import calibration


def test_calibration_of_counted_examples():
    score = np.array([0.0, 0.05, 0.95, 0.95, 0.95, 1.0])
    correct = np.array([False, True, True, True, False, True])
    result = calibration(score, correct)
    low, high = abs(0.025 - 0.5), abs(0.9625 - 0.75)
    assert result.ece == pytest.approx((2 * low + 4 * high) / 6)
    assert result.mce == pytest.approx(low)
    assert [b.count for b in result.bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert calibration(np.full(4, 0.5), np.array([1, 1, 0, 0], bool)).ece == 0.0
    assert calibration(np.full(4, 0.5), np.array([1, 1, 0, 0], bool)).constant


def test_scores_outside_0_to_1_have_no_calibration_error():
    result = calibration(np.array([0.5, 3.0]), np.array([True, False]))
    assert result.ece is None and "not probabilities" in result.reason
