"""Set targets of enumerated small answers against a slow reference that compares whole objects token by token."""

import itertools
import re
from collections import Counter

import pytest

from coordexp.answers.formats import format_of
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.losses.set_targets import branch_targets
from coordexp.records import Object, coord_token
from coordexp.runtime.errors import DataError

COORD = re.compile(r"<\|coord_(\d+)\|>|.", re.DOTALL)
STYLES = [
    PromptStyle(object_field_order=order, json_format=spacing)
    for order in ("desc_first", "geometry_first")
    for spacing in ("standard", "compact")
]
STYLES += [PromptStyle(answer_format=name) for name in ("grouped", "box_tokens")]


def shape(desc, *bins, kind="bbox_2d"):
    return Object(desc, 1, [k / 999 + 1e-4 for k in bins], **{kind: [coord_token(k) for k in bins]})


OBJECTS = {
    "cat": shape("cat", 10, 20, 30, 40),
    "other cat": shape("cat", 50, 60, 70, 80),
    "cat at the same x1": shape("cat", 10, 5, 90, 95),
    "car": shape("car", 10, 20, 30, 40),
    "cats": shape("cats", 1, 2, 3, 4),
    "cat polygon": shape("cat", 10, 20, 30, 40, 50, 60, kind="poly"),
}


def encode(text):
    """One id per character; coordinate tokens are 1000000 + bin."""
    return [1_000_000 + int(m[1]) if m[1] else ord(m[0]) for m in COORD.finditer(text)]


def is_coord(token):
    return token >= 1_000_000


def listed_next(objects, i, style):
    """Answers with each remaining object listed after the first `i`, from the last coordinate before it to its own."""
    answer_format, answers = format_of(style), []
    done = sum(len(obj.coords) for obj in objects[:i])
    for j in range(i, len(objects)):
        order = [*objects[:i], objects[j], *objects[i:j], *objects[j + 1 :]]
        if answer_format.arrange(order)[: i + 1] == order[: i + 1]:
            tokens = encode(render_answer(order, style))
            at = [-1, *(n for n, token in enumerate(tokens) if is_coord(token))]
            answers.append((objects[j], tokens[at[done] + 1 : at[done + len(objects[j].coords)] + 1]))
    return answers


def reference(objects, style):
    """(text, slots) of set targets: at each position of an object, which remaining objects agree with it so far?"""
    text, slots = [], []
    position = slot = 0
    for i in range(len(objects)):
        remaining = listed_next(objects, i, style)
        own, branching = remaining[0][1], True
        for step, token in enumerate(own):
            agreeing = [(obj, other) for obj, other in remaining if other[:step] == own[:step]]
            if branching and is_coord(token) and len(agreeing) > 1:
                slots += [(slot, obj.norm[0], 1 / len(agreeing)) for obj, _ in agreeing]
            elif branching and not is_coord(token):
                options = Counter(other[step] for _, other in agreeing)
                if len(options) > 1:
                    text += [(position, option, n / len(agreeing)) for option, n in sorted(options.items())]
            branching = branching and not is_coord(token)  # the first coordinate ends the branch
            position += 1
            slot += is_coord(token)
    return text, slots


def computed(objects, style):
    labels = encode(render_answer(objects, style))
    targets = branch_targets(objects, labels, [is_coord(label) for label in labels], style, encode)
    for slot, coord_bin, coord, _ in targets.slots:
        assert coord_bin == round(coord * 999) and slot < sum(map(is_coord, labels))
    return targets.text, [(slot, coord, weight) for slot, _, coord, weight in targets.slots]


@pytest.mark.parametrize(
    "style", STYLES, ids=lambda style: f"{style.answer_format}-{style.object_field_order}-{style.json_format}"
)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_set_targets_equal_the_reference(count, style):
    for names in itertools.permutations(OBJECTS, count):
        objects = [OBJECTS[name] for name in names]
        if format_of(style).arrange(objects) == objects:
            assert computed(objects, style) == reference(objects, style), names


def test_the_first_different_letter_is_a_branch():
    text, slots = computed([OBJECTS["cat"], OBJECTS["car"], OBJECTS["cats"]], PromptStyle())
    first = len('{"objects": [{"desc": "ca')
    assert text[:2] == [(first, ord("r"), pytest.approx(1 / 3)), (first, ord("t"), pytest.approx(2 / 3))]
    assert text[2:4] == [(first + 1, ord('"'), 0.5), (first + 1, ord("s"), 0.5)]
    assert not slots


def test_x1_is_a_branch_among_objects_with_the_same_description():
    text, slots = computed([OBJECTS["cat"], OBJECTS["other cat"]], PromptStyle())
    assert not text
    assert slots == [(0, OBJECTS["cat"].norm[0], 0.5), (0, OBJECTS["other cat"].norm[0], 0.5)]


def test_weights_at_a_branch_sum_to_one():
    for names in itertools.permutations(OBJECTS, 4):
        text, slots = computed([OBJECTS[name] for name in names], PromptStyle())
        totals = Counter()
        for kind, entries in (("text", text), ("slot", slots)):
            for position, _, weight in entries:
                totals[kind, position] += weight
        assert all(total == pytest.approx(1) for total in totals.values())


def test_a_description_with_other_ids_inside_its_answer_is_an_error():
    objects, style = [OBJECTS["cat"]], PromptStyle()
    labels = encode(render_answer(objects, style))
    labels[3] += 1
    with pytest.raises(DataError, match="'cat' is encoded differently inside its answer"):
        branch_targets(objects, labels, [is_coord(label) for label in labels], style, encode)
