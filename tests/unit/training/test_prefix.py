"""Disturbed prefixes: which objects are given, taught, moved and hidden."""

import random
from collections import Counter

import pytest

from coordexp.records import Object, coord_bin, coord_token
from coordexp.sequence_options import PrefixOptions
from coordexp.training.prefix import read_bins, with_perturbed_prefix


def boxes(count):
    """Objects of distinct descriptions, 100 bins wide and 50 high."""
    norms = [[n / 20, 0.5, n / 20 + 0.1, 0.55] for n in range(count)]
    return [
        Object(f"object {n}", 1, norm, bbox_2d=[coord_token(round(v * 999)) for v in norm])
        for n, norm in enumerate(norms)
    ]


def names(objects):
    return [obj.desc for obj in objects]


@pytest.mark.parametrize("seed", range(30))
def test_every_object_is_read_or_taught_and_the_missing_ones_follow_in_order(seed):
    objects, options = boxes(8), PrefixOptions(continued=1, dropped=0.4, swapped=0.3, repeated=0.3)
    answer = with_perturbed_prefix(objects, options, random.Random(seed))
    given, taught = answer.objects[: answer.given], answer.objects[answer.given :]
    assert set(names(given)) | set(names(taught)) == set(names(objects))
    assert not set(names(given)) & set(names(taught))
    assert names(taught) == sorted(names(taught)) and all(obj in objects for obj in taught)
    assert all(count <= 2 for count in Counter(names(given)).values())


def test_without_disturbance_the_prefix_is_the_beginning_of_the_answer():
    options = PrefixOptions(continued=1, dropped=0, swapped=0, repeated=0)
    for seed in range(10):
        assert with_perturbed_prefix(boxes(5), options, random.Random(seed)).objects == boxes(5)


def test_a_repeated_object_is_a_near_copy():
    options = PrefixOptions(continued=1, dropped=0, swapped=0, repeated=1)
    objects, given = with_perturbed_prefix(boxes(4), options, random.Random(0))
    first, copy = (list(map(coord_bin, obj.bbox_2d)) for obj in objects[:2])
    assert given % 2 == 0 and objects[0].desc == objects[1].desc and first != copy
    assert max(abs(a - b) for a, b in zip(first, copy, strict=True)) < 20


def test_the_shares_of_noisy_and_hidden_objects_are_those_of_the_options():
    objects, options = boxes(4) * 500, PrefixOptions(noise=0.5, noise_scale=0.15, wildcard=0.2)
    read = read_bins(objects, options, random.Random(1))
    exact = [list(map(coord_bin, obj.bbox_2d)) for obj in objects]
    hidden = sum(bins == [None] * 4 for bins in read)
    noisy = [(a, b) for a, b in zip(read, exact, strict=True) if a != b and a[0] is not None]
    assert hidden / 2000 == pytest.approx(0.2, abs=0.03) and len(noisy) / 2000 == pytest.approx(0.5, abs=0.04)
    shifts = [a[0] - b[0] for a, b in noisy if a[0] > 0 and b[0] > 100]
    assert (sum(s * s for s in shifts) / len(shifts)) ** 0.5 == pytest.approx(0.15 * 100, rel=0.15)
    assert all(0 <= a[0] < a[2] <= 999 and 0 <= a[1] < a[3] <= 999 for a, _ in noisy)


@pytest.mark.parametrize("corner", [[0, 0, 1, 1], [998, 998, 999, 999], [0, 0, 999, 999]])
def test_noisy_boxes_stay_boxes_within_the_bins(corner):
    obj = Object("x", 1, [0, 0, 1, 1], bbox_2d=[coord_token(bin) for bin in corner])
    for seed in range(50):
        (x1, y1, x2, y2) = read_bins([obj], PrefixOptions(noise=1, noise_scale=3), random.Random(seed))[0]
        assert 0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999
