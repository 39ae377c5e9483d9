"""Copies of an object and loops in descriptions: how many are generated, and that each closure is counted."""

from __future__ import annotations

import itertools
import random

import pytest
from inference_helpers import ORDERS, open_predictor, run_with, tokens_of

from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.options import PredictOptions
from coordexp.inference.repetition import ends_in_loop
from coordexp.inference.scores import detections_of, without_repeats
from coordexp.records import Object, coord_token
from coordexp.runtime.config_io import convert
from coordexp.runtime.errors import ConfigError


def objects(*pairs: tuple[str, list[int]]) -> list[Object]:
    kinds = {4: "bbox_2d"}
    return [Object(n, 1, [0.0] * 4, **{kinds.get(len(b), "poly"): [coord_token(k) for k in b]}) for n, b in pairs]


def generated(
    predictor, labels, wanted: list[Object], repeats: int, iou: float = 0.8, max_suppressed: int | None = None
) -> tuple[list, dict]:
    """What is generated under the grammar by a model that prefers to write `wanted`."""
    detections, problems = detections_and_problems(predictor, labels, wanted, repeats, iou, max_suppressed)
    return [(d.desc, tuple(d.bins)) for d in detections], problems


def detections_and_problems(predictor, labels, wanted, repeats, iou, max_suppressed):
    """Detections of the answer of a model that prefers to write `wanted`."""
    grammar, desc_first = predictor.grammar(labels), predictor.style.object_field_order == "desc_first"
    suppression = {} if max_suppressed is None else {"suppress_repeats": True, "max_suppressed": max_suppressed}
    options = PredictOptions(max_new_tokens=5000, max_repeats=repeats, repeat_iou=iou, **suppression)
    answer = GenerationState(grammar, options, desc_first=desc_first)
    script = tokens_of(predictor, wanted, labels)
    original = GenerationState.advance

    def advance(self, choices):  # obey the limits of the state as the decoder does
        nodes = [*(self.pending[i].node for i in self.drafts), self.node]
        limited = []
        for node, choice in zip(nodes, choices, strict=True):
            candidates = None if node.kind == "slot" else self.candidates(node)
            if candidates is not None and choice.token not in candidates:
                closing = [t for t in candidates if t in node.closes]
                limited.append(choice._replace(token=(closing or candidates)[0]))
            elif candidates is None and node.kind == "text" and choice.token in self.forbidden(node):
                limited.append(choice._replace(token=min(node.closes)))
            else:
                limited.append(choice)
        return original(self, limited)

    answer.advance = advance.__get__(answer)
    run_with(answer, script, predictor.ids.start)
    found, problems = detections_of(answer, predictor.text(answer), (96, 96))
    assert answer.finish == "stop"
    return found, problems


A, B = [10, 20, 300, 400], [500, 510, 700, 800]
POLYGON = [10, 20, 300, 20, 300, 400]


@pytest.mark.parametrize("repeats", [2, 3, 4])
@pytest.mark.parametrize("labels", [None, ("cat", "cat food")], ids=["open", "labels"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("copied", [A, POLYGON], ids=["box", "polygon"])
def test_at_most_max_repeats_copies_are_generated(order, labels, repeats, copied):
    predictor = open_predictor(order)
    found, problems = generated(predictor, labels, objects(*[("cat", copied)] * 8), repeats)
    assert len(found) == repeats and problems.pop("repetition_closed") == 1 and not problems
    between = [("cat", A), ("cat food", B), ("cat", [0, 1, 2, 3])]
    found, problems = generated(predictor, labels, objects(*between, *[("cat", copied)] * 8), repeats)
    copies = sum(desc == "cat" and list(bins) == copied for desc, bins in found)
    assert copies == repeats and problems["repetition_closed"] == 1


@pytest.mark.parametrize("order", ORDERS)
def test_copies_need_not_be_consecutive(order):
    predictor = open_predictor(order)
    found, problems = generated(predictor, None, objects(*[("cat", A), ("dog", B)] * 5), 3)
    assert found == [("cat", tuple(A)), ("dog", tuple(B))] * 2 + [("cat", tuple(A))]
    assert problems == {"repetition_closed": 1}


@pytest.mark.parametrize("order", ORDERS)
def test_jittered_copies_are_copies(order):
    predictor = open_predictor(order)
    jittered = [("cat", [10 + d, 20, 300 + d, 400 - d]) for d in range(8)]
    found, problems = generated(predictor, None, objects(*jittered), 4)
    assert len(found) == 4 and problems == {"repetition_closed": 1}
    found, problems = generated(predictor, None, objects(*jittered), 4, iou=1.0)
    assert len(found) == 8 and problems == {}


@pytest.mark.parametrize("order", ORDERS)
def test_other_objects_are_no_copies(order):
    """Another description in the same box; a dense row of like objects; boxes within each other."""
    predictor = open_predictor(order)
    names = [(f"cat {''.join(c)}", A) for c in itertools.islice(itertools.product("abc", repeat=2), 9)]
    row = [("cell", [30 * n, 10, 30 * n + 29, 60]) for n in range(20)]
    nested = [("box", [n * 60, n * 60, 999 - n * 60, 999 - n * 60]) for n in range(8)]
    expected = [(n, tuple(b)) for n, b in names + row + nested]
    assert generated(predictor, None, objects(*names, *row, *nested), 2) == (expected, {})


def cells(box) -> set[tuple[int, int]]:
    """The unit squares that a box covers."""
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def slow_suppression(wanted, iou: float, max_repeats: int, max_suppressed: int) -> tuple[list, list, bool]:
    """Objects generated, those kept, and whether a limit ended the answer, from sets of unit squares."""
    written, kept, in_a_row = [], [], 0

    def copies(desc, box, others):
        return [b for d, b in others if d == desc and len(cells(b) & cells(box)) >= iou * len(cells(b) | cells(box))]

    for desc, box in wanted:
        limit = len(copies(desc, box, written)) + 1 >= max_repeats
        suppressed = bool(copies(desc, box, kept))
        in_a_row = in_a_row + 1 if suppressed else 0
        written.append((desc, box))
        if not suppressed:
            kept.append((desc, box))
        if limit or in_a_row == max_suppressed:
            return written, kept, True
    return written, kept, False


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("labels", [None, ("cat", "cat food")], ids=["open", "labels"])
def test_suppression_agrees_with_a_slow_reference(order, labels):
    predictor, ended, bursts = open_predictor(order), 0, 0
    for seed in range(16 if labels else 3):  # an open description takes longer
        rng = random.Random(seed)
        wanted = []
        for _ in range(12):
            x, y = rng.choice([(0, 0), (12, 3)])
            box = [x + rng.randrange(2), y + rng.randrange(2), x + 9 + rng.randrange(2), y + 8 + rng.randrange(2)]
            wanted.append((rng.choice(["cat", "cat", "cat food"]), box))
        max_suppressed = rng.choice([1, 2, 3])
        written, kept, limited = slow_suppression(wanted, 0.7, 6, max_suppressed)
        found, problems = detections_and_problems(predictor, labels, objects(*wanted), 6, 0.7, max_suppressed)
        assert [(d.desc, d.bins) for d in found] == written, seed
        assert [(d.desc, d.bins) for d in without_repeats(found, 0.7)] == kept, seed
        assert problems == ({"repetition_closed": 1} if limited and len(written) < len(wanted) else {}), seed
        ended += limited
        bursts += len(written) > len(kept)
    assert ended and bursts


@pytest.mark.parametrize("order", ORDERS)
def test_boxes_with_other_descriptions_are_not_suppressed(order):
    predictor, alternating = open_predictor(order), [("cat", A), ("dog", A)] * 3
    found, problems = detections_and_problems(predictor, None, objects(*alternating), 9, 0.8, 3)
    assert [d.desc for d in found] == ["cat", "dog", "cat", "dog", "cat"] and problems == {"repetition_closed": 1}
    assert [d.desc for d in without_repeats(found, 0.8)] == ["cat", "dog"]
    distinct = [(f"cat {name}", A) for name in "abcdefgh"]
    found, problems = detections_and_problems(predictor, None, objects(*distinct), 9, 0.8, 1)
    assert without_repeats(found, 0.8) == found and len(found) == 8 and problems == {}


def test_a_drifting_row_of_boxes_is_compared_with_kept_boxes_only():
    drifting = [
        ("cat", [40 * n, 0, 400 + 40 * n, 400]) for n in range(4)
    ]  # IoU .82 with the last, .67 with that before
    found, _ = detections_and_problems(open_predictor(), None, objects(*drifting), 9, 0.8, 3)
    assert [d.bins[0] for d in without_repeats(found, 0.8)] == [0, 80]


def test_max_repeats_below_two_is_refused():
    with pytest.raises(ConfigError, match="max_repeats"):
        convert({"max_repeats": 1}, PredictOptions)


NUMBERS = ["route 100000", "0000000", "10101010101010", "1.0.0.0.0.0", "wait.....", "12 12 12 12 12", "--------"]
NUMBERS += ["１００００００", "٠٠٠٠٠٠", "①①①①①", "½½½½½", "★★★★★", "……………"]  # in several tokens per character


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_and_punctuation_are_not_cut(order, name):
    assert generated(open_predictor(order), None, objects((name, A)), 4) == ([(name, tuple(A))], {})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", [" cat" * 20, "ha" * 30, "Ü" * 30, " a b c" * 12, "9" * 60])
def test_descriptions_that_are_closed_are_counted(order, name):
    predictor = open_predictor(order)
    script = predictor.vocabulary.tokenize("x" + name)
    options = PredictOptions(max_new_tokens=5000, repeat_iou=1.0)
    answer = GenerationState(predictor.grammar(), options, desc_first=order == "desc_first")
    written = 0
    while answer.finish is None:
        choices = []
        for node in [*(answer.pending[i].node for i in answer.drafts), answer.node]:
            if node.kind == "slot":
                k = answer.bin_range(node.role)[0]
                choices.append(TokenChoice(predictor.ids.start + k, -0.5, DecodedCoordinate(k, k, 1.0, -0.5, 0.9)))
            elif node.kind == "text" and answer.candidates(node) is None:
                choices.append(TokenChoice(script[written % len(script)], -0.1))
                written += 1
            else:
                among = answer.candidates(node)
                starts = len(answer.slots) < 4
                preferred = [t for t in among if (t in node.closes) != starts] or among
                opening = [t for t in preferred if node.after(t) == answer.grammar.automaton.blank]
                choices.append(TokenChoice((opening or preferred)[0], -0.1))
        answer.advance(choices)
    found, problems = detections_of(answer, predictor.text(answer), (96, 96))
    assert problems["description_closed"] == len(found) and all(1 < len(d.desc) < len(name) for d in found)


def test_loops_have_a_letter_and_a_period_of_up_to_four_tokens():
    spelling = {1: b"a", 2: b"0", 3: b" ", 4: b"\xe7"}
    assert ends_in_loop([2, 1, 1, 1], 3, spelling) and not ends_in_loop([1, 1], 3, spelling)
    assert not ends_in_loop([2] * 9, 3, spelling) and not ends_in_loop([2, 3] * 9, 3, spelling)
    assert ends_in_loop([1, 2, 3, 2] * 3, 3, spelling) and not ends_in_loop([1, 2, 3, 2, 3] * 3, 3, spelling)
    assert ends_in_loop([4] * 3, 3, spelling)
