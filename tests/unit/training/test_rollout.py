"""Training sequences from answers, against a slow reference that tries every matching."""

import itertools
import random

import pytest

from coordexp.answers.formats import format_of
from coordexp.answers.parse import parse_answer
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.records import Object, coord_token
from coordexp.sequence_options import RolloutOptions
from coordexp.training.rollout import Continuation, RolloutCounts, arranged, departure, match_boxes, rollout_answer


def box(desc, *bins):
    return Object(desc, 1, [k / 999 for k in bins], bbox_2d=[coord_token(k) for k in bins])


def answered(*objects):
    return parse_answer(render_answer(objects, PromptStyle())).objects


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def random_box(rng, near=None):
    x, y = (rng.randint(0, 800), rng.randint(0, 800)) if near is None else near[:2]
    moved = [v + rng.randint(-30, 30) for v in (x, y, x + 150, y + 150)]
    return [min(max(v, 0), 999) for v in moved]


def best_matching(own, annotated, min_iou):
    """(number of pairs, total IoU) of the best matching, by trying all."""
    best = (0, 0.0)
    for columns in itertools.permutations([*range(len(annotated)), *[None] * len(own)], len(own)):
        pairs = [(a, annotated[j]) for a, j in zip(own, columns, strict=True) if j is not None]
        values = [iou(a.bins, [999 * v for v in b.norm]) for a, b in pairs]
        if all(a.desc == b.desc for a, b in pairs) and all(value >= min_iou for value in values):
            best = max(best, (len(values), sum(values)))
    return best


def test_the_matching_is_optimal():
    rng = random.Random(1)
    for _ in range(60):
        annotated = [box(rng.choice("ab"), *random_box(rng)) for _ in range(rng.randint(0, 3))]
        near = [[round(999 * v) for v in obj.norm] for obj in annotated]
        own = answered(*[box(rng.choice("ab"), *random_box(rng, rng.choice(near) if near else None)) for _ in range(3)])
        match = match_boxes(own, annotated, 0.5)
        values = [iou(own[i].bins, [999 * v for v in annotated[j].norm]) for i, j in match.items()]
        assert len(set(match.values())) == len(match) and all(
            own[i].desc == annotated[j].desc for i, j in match.items()
        )
        assert (len(values), sum(values)) == pytest.approx(best_matching(own, annotated, 0.5))


A, B, C = box("a", 100, 100, 200, 200), box("a", 300, 100, 400, 200), box("b", 500, 500, 700, 700)
NEAR_A, NEAR_B, NEAR_C = box("a", 105, 98, 203, 199), box("a", 310, 110, 400, 205), box("b", 520, 510, 700, 690)
AGAIN_A, ELSEWHERE = box("a", 104, 100, 203, 199), box("a", 800, 800, 900, 900)


def bins(obj):
    return [round(999 * v) for v in obj.norm]


def sequence(answer, annotated, **options):
    """(what is written, what is read) of a sequence: None is written for an object that is no target."""
    made = rollout_answer(answered(*answer), annotated, RolloutOptions(**options))
    targets = [obj if kept else None for obj, kept in zip(made.objects, made.supervised, strict=True)]
    return list(zip(targets, made.read, strict=True)), made.counts


def test_matched_objects_stay_in_the_order_and_coordinates_of_the_model():
    found, counts = sequence([NEAR_C, NEAR_B, NEAR_A], [A, B, C])
    assert found == [(C, bins(NEAR_C)), (B, bins(NEAR_B)), (A, bins(NEAR_A))]
    assert counts == RolloutCounts(matched=3, missed=0, false_positives=0, duplicates=0)


def test_a_missed_object_is_inserted_where_training_lists_it_or_appended():
    found, counts = sequence([NEAR_C, NEAR_B], [A, B, C])
    assert found == [(A, bins(A)), (C, bins(NEAR_C)), (B, bins(NEAR_B))] and counts.missed == 1
    found, _ = sequence([NEAR_A, NEAR_C], [A, B, C])
    assert found == [(A, bins(NEAR_A)), (B, bins(B)), (C, bins(NEAR_C))]
    found, _ = sequence([NEAR_C], [A, B, C], missed="append")
    assert found == [(C, bins(NEAR_C)), (A, bins(A)), (B, bins(B))]
    found, _ = sequence([], [A, B])
    assert found == [(A, bins(A)), (B, bins(B))]


def test_a_false_positive_is_context_or_removed():
    answer = [ELSEWHERE, NEAR_A, box("b", 105, 98, 203, 199)]  # nothing there; right; right box, wrong description
    found, counts = sequence(answer, [A])
    assert found == [(None, bins(ELSEWHERE)), (A, bins(NEAR_A)), (None, bins(NEAR_A))]
    assert counts == RolloutCounts(matched=1, missed=0, false_positives=2, duplicates=0)
    assert sequence(answer, [A], false_positives="drop")[0] == [(A, bins(NEAR_A))]


def test_only_an_object_whose_description_is_verified_is_rejected():
    """Where annotations are incomplete, a box without an annotation may be an object that nobody annotated."""
    answer = answered(ELSEWHERE, NEAR_A, box("b", 800, 800, 900, 900))
    made = rollout_answer(answer, [A], RolloutOptions(), {"a"})
    assert made.supervised == [False, True, False] and made.rejected == [True, False, False]
    assert made.counts == RolloutCounts(matched=1, missed=0, false_positives=2, duplicates=0, unverified=1)
    assert rollout_answer(answer, [A], RolloutOptions()).rejected == [True, False, True]
    grouped = arranged(made, format_of(PromptStyle(answer_format="grouped")))
    assert [obj.desc for obj, rejected in zip(grouped.objects, grouped.rejected, strict=True) if rejected] == ["a"]


def test_near_duplicates_are_removed_before_matching():
    """A second annotation at the same place stays missed, although a near-duplicate would match it."""
    twin = box("a", 100, 100, 203, 199)
    found, counts = sequence([NEAR_A, AGAIN_A, AGAIN_A], [A, twin])
    assert found == [(A, bins(A)), (twin, bins(NEAR_A))]
    assert counts == RolloutCounts(matched=1, missed=1, false_positives=0, duplicates=2)


def test_an_iou_below_the_limit_is_no_match():
    half = box("a", 100, 100, 200, 150)  # IoU .5 with A
    assert sequence([half], [A], min_iou=0.49)[1].matched == 1
    assert sequence([half], [A], min_iou=0.51)[1] == RolloutCounts(0, 1, 1, 0)


def test_an_answer_with_too_many_objects_is_discarded():
    assert rollout_answer(answered(A, B, C), [A], RolloutOptions(max_objects=2)) is None


def test_every_annotation_is_a_target_once_and_permuting_them_changes_only_where_missed_ones_go():
    rng = random.Random(2)
    for _ in range(20):
        annotated = [box(rng.choice("ab"), *random_box(rng)) for _ in range(4)]
        answer = [box(obj.desc, *random_box(rng, bins(obj))) for obj in rng.sample(annotated, 3)] + [ELSEWHERE]
        one = rollout_answer(answered(*answer), annotated, RolloutOptions())
        other = rollout_answer(answered(*answer), annotated[::-1], RolloutOptions())
        for made in (one, other):
            targets = [obj for obj, kept in zip(made.objects, made.supervised, strict=True) if kept]
            assert sorted(map(bins, targets)) == sorted(map(bins, annotated))
        assert one.counts == other.counts
        key = lambda made: sorted(zip(map(bins, made.objects), made.read, made.supervised, strict=True))  # noqa: E731
        assert key(one) == key(other)


COORDS = range(1000, 2000)


def test_a_false_positive_departs_at_the_first_token_that_no_remaining_object_allows():
    remaining = [Continuation([1, 2, 1100, 3, 1200], [10, 10]), Continuation([1, 2, 1500, 3, 1600], [10, 10])]
    for own, position in (
        ([1, 5, 1100, 3, 1200], 1),  # another description
        ([1, 2, 1300, 3, 1200], 2),  # between both
        ([1, 2, 1505, 3, 1200], 4),  # the first coordinate of one, the second of the other
        ([1, 2, 1505, 3, 1605], 4),  # as one of them: the last token
        ([9], 0),
    ):
        assert departure(own, remaining, COORDS) == position, own
    assert departure([7, 2], [], COORDS) == 0
    assert departure([1, 2, 1100], [Continuation([1, 8], [])], COORDS) == 1  # the answer should have ended


@pytest.mark.parametrize(("name", "expected"), [("json", "aba"), ("box_tokens", "aba"), ("grouped", "aab")])
def test_an_answer_keeps_the_model_s_order_unless_its_format_groups_descriptions(name, expected):
    rollout = rollout_answer(answered(A, C, B), [A, B, C], RolloutOptions(share=0.1))
    found = arranged(rollout, format_of(PromptStyle(answer_format=name)))
    assert "".join(obj.desc for obj in found.objects) == expected
    assert [[coord_token(k) for k in bins] for bins in found.read] == [obj.bbox_2d for obj in found.objects]
