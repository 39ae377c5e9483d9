"""Agreement of answers, and the results of the diagnostic of image use."""

from __future__ import annotations

import pytest

from coordexp.evaluation.image_use import ImageUse, agreement, caution, combined
from coordexp.records import Detection

LEFT, RIGHT = [0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]


def test_agreement_is_the_f1_of_two_answers():
    some = [Detection("cat", LEFT, 0.9), Detection("cat", RIGHT, 0.2)]
    assert agreement(some, some[::-1]) == 1
    assert agreement(some, some[:1]) == pytest.approx(2 / 3)
    assert agreement(some[:1], [Detection("dog", LEFT, 0.9)]) == 0
    assert agreement(some[:1], [some[0]] * 3) == pytest.approx(0.5)  # one partner at most
    assert agreement([], []) == 1 and agreement(some, []) == 0


def test_results_are_combined_by_their_number_of_coordinates():
    whole = combined([ImageUse(1, 4, -1.0, -2.0, -3.0), ImageUse(2, 12, -2.0, -2.0, -7.0)])
    assert whole == ImageUse(3, 16, -1.75, -2.0, -6.0)
    assert whole.gain == pytest.approx(0.25)


def test_a_model_that_barely_uses_the_image_is_reported():
    assert caution(0.5, 0.2) is None and caution(None, None) is None
    assert "0.05 nats" in caution(0.05, 0.2) and " and " in caution(0.05, 0.9)
    assert "90% of the boxes are the same" in caution(2.0, 0.9)
