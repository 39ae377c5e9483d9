"""Schedules of perturbed prefixes and rollouts."""

import pytest

from coordexp.sequence_options import PrefixOptions, RolloutOptions


@pytest.mark.parametrize(
    ("step", "progress", "share"), [(0, 0.2, 0), (0, 0.4, 0.1), (0, 0.9, 0.2), (1, 0.9, 0), (2, 0.5, 0.2)]
)
def test_the_share_grows_from_start_to_full(step, progress, share):
    options = RolloutOptions(share=0.2, start=0.3, full=0.5, every=2)
    assert options.share_at(step, progress) == pytest.approx(share)


def test_start_and_full_at_once():
    options = RolloutOptions(share=0.2, start=0.5, full=0.5)
    assert [options.share_at(0, progress) for progress in (0.4, 0.5, 1.0)] == [0, 0.2, 0.2]


def test_the_fractions_of_perturbed_prefixes_grow_with_the_epochs():
    options = PrefixOptions(noise=0.4, wildcard=0.2, continued=0.5, noise_scale=0.3, start=0.25, full=0.75)
    seen = [options.at(progress) for progress in (0.0, 0.25, 0.5, 0.75)]
    assert [o.noise for o in seen] == [0, 0, pytest.approx(0.2), 0.4]
    assert seen[2].wildcard == pytest.approx(0.1) and seen[2].continued == pytest.approx(0.25)
    assert {o.noise_scale for o in seen} == {0.3} and PrefixOptions(noise=0.4).at(0.0).noise == 0.4


@pytest.mark.parametrize("options", [PrefixOptions, RolloutOptions])
def test_start_must_not_follow_full(options):
    with pytest.raises(ValueError, match=r"expected start <= full, found start 0\.9 and full 0\.8"):
        options(start=0.9, full=0.8)
