"""When training has rollouts."""

import pytest

from coordexp.sequence_options import RolloutOptions


@pytest.mark.parametrize(
    ("step", "progress", "share"), [(0, 0.2, 0), (0, 0.4, 0.1), (0, 0.9, 0.2), (1, 0.9, 0), (2, 0.5, 0.2)]
)
def test_the_share_grows_from_start_to_full(step, progress, share):
    options = RolloutOptions(share=0.2, start=0.3, full=0.5, every=2)
    assert options.share_at(step, progress) == pytest.approx(share)


def test_start_and_full_at_once():
    options = RolloutOptions(share=0.2, start=0.5, full=0.5)
    assert [options.share_at(0, progress) for progress in (0.4, 0.5, 1.0)] == [0, 0.2, 0.2]
