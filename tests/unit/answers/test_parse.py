"""Parsing answers: complete, malformed, truncated, and a hundred thousand mutated ones."""

from __future__ import annotations

import json
import random
import re
import time

import msgspec
import pytest

from coordexp.answers.parse import parse_answer
from coordexp.answers.parsed_answer import REASONS
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.records import Object, coord_bin, coord_token

STYLES = [
    PromptStyle(object_field_order=order, json_format=spacing)
    for order in ("desc_first", "geometry_first")
    for spacing in ("standard", "compact")
]
DESCRIPTIONS = [
    "cat",
    'a "quoted" cup',
    "back\\slash",
    "tab\there",
    "café crème",
    "漢字",
    "}]}",
    '{"desc": "x"',
    "🐈",
    "[1, 2]",
]


def bracket(*bins: int) -> str:
    return "[" + ", ".join(f"<|coord_{k}|>" for k in bins) + "]"


def box(desc: str, *bins: int) -> str:
    return f'{{"desc": {json.dumps(desc)}, "bbox_2d": {bracket(*bins)}}}'


def answer(*objects: str) -> str:
    return '{"objects": [' + ", ".join(objects) + "]}"


def random_objects(rng: random.Random, count: int) -> list[Object]:
    objects = []
    for _ in range(count):
        desc = rng.choice(DESCRIPTIONS)
        if rng.random() < 0.7:
            (x1, x2), (y1, y2) = (sorted(rng.sample(range(1000), 2)) for _ in range(2))
            objects.append(
                Object(
                    desc=desc,
                    category_id=1,
                    norm=[0.0, 0.0, 1.0, 1.0],
                    bbox_2d=[coord_token(k) for k in (x1, y1, x2, y2)],
                )
            )
        else:
            poly = [rng.randrange(1000) for _ in range(2 * rng.randint(3, 6))]
            objects.append(
                Object(desc=desc, category_id=1, norm=[0.0] * len(poly), poly=[coord_token(k) for k in poly])
            )
    return objects


@pytest.mark.parametrize("style", STYLES)
def test_rendered_answers_are_parsed_exactly(style):
    rng = random.Random(3)
    for count in (0, 1, 2, 7):
        objects = random_objects(rng, count)
        parsed = parse_answer(render_answer(objects, style))
        assert parsed.complete and parsed.problems == {}
        assert [(o.desc, o.bins) for o in parsed.objects] == [
            (o.desc, [coord_bin(c) for c in o.coords]) for o in objects
        ]
        assert [o.kind for o in parsed.objects] == ["bbox_2d" if o.bbox_2d else "poly" for o in objects]


@pytest.mark.parametrize("style", STYLES)
def test_truncation_keeps_the_complete_objects(style):
    objects = random_objects(random.Random(5), 4)
    text = render_answer(objects, style)
    spans = [o.span for o in parse_answer(text).objects]
    header = text.index("[") + 1
    for cut in range(len(text)):
        parsed = parse_answer(text[:cut])
        assert [o.span for o in parsed.objects] == [s for s in spans if s[1] <= cut]
        assert not parsed.complete
        assert parsed.problems == {"cut_off" if cut >= header else "no_answer": 1}


@pytest.mark.parametrize(
    ("text", "descs", "problems", "complete"),
    [
        (answer(), [], {}, True),
        (answer(box("a", 1, 2, 3, 4)) + "<|im_end|>\n<|endoftext|>", ["a"], {}, True),
        ("", [], {"no_answer": 1}, False),
        ("I see a cat.", [], {"no_answer": 1}, False),
        ("Sure: " + answer(box("a", 1, 2, 3, 4)), ["a"], {"text_before_answer": 1}, True),
        (answer(box("a", 1, 2, 3, 4)) + " done", ["a"], {"text_after_answer": 1}, True),
        (answer(box("a", 1, 2, 3, 4))[:-2], ["a"], {"cut_off": 1}, False),
        (f"[{box('a', 1, 2, 3, 4)}]", ["a"], {"no_answer": 1}, False),
        (answer(box("a", 3, 2, 1, 4), box("b", 1, 2, 3, 4)), ["b"], {"disordered_box": 1}, True),
        (answer(box("a", 1, 2, 3, 2), box("b", 1, 2, 3, 4)), ["b"], {"empty_box": 1}, True),
        (answer(box("a", 1, 2, 3), box("b", 1, 2, 3, 4, 5)), [], {"wrong_count": 2}, True),
        (answer(box("a"), box("b", 1, 2, 3, 4)), ["b"], {"wrong_count": 1}, True),
        (answer(box(" ", 1, 2, 3, 4)), [], {"empty_desc": 1}, True),
        (answer('{"desc": "a", "bbox_2d": [1, 2, 3, 4]}', box("b", 1, 2, 3, 4)), ["b"], {"not_coord_tokens": 1}, True),
        (answer('{"desc": "a", "bbox_2d": [, , , ]}'), [], {"not_coord_tokens": 1}, True),
        (answer('{"desc": "a", "bbox_2d": [<|coord_*|>, <|coord_1000|>]}'), [], {"not_coord_tokens": 1}, True),
        (answer('{"desc": "a"}', box("b", 1, 2, 3, 4)), ["b"], {"bad_syntax": 1}, True),
        (answer('{"name": "a"}'), [], {"bad_syntax": 1}, True),
        (answer('{"desc": "\\ud800", "bbox_2d": ' + bracket(1, 2, 3, 4) + "}"), [], {"bad_string": 1}, True),
        (answer('{"desc": "a\nb", "bbox_2d": ' + bracket(1, 2, 3, 4) + "}"), [], {"bad_string": 1}, True),
        (answer(box("a", 1, 2, 3, 4) + " " + box("b", 1, 2, 3, 4)), ["a", "b"], {"bad_syntax": 1}, True),
    ],
)
def test_reasons(text, descs, problems, complete):
    parsed = parse_answer(text)
    assert [o.desc for o in parsed.objects] == descs
    assert parsed.problems == problems
    assert parsed.complete is complete


@pytest.mark.parametrize("style", STYLES)
def test_integers_are_parsed_only_if_expected(style):
    plain = msgspec.structs.replace(style, coordinates="integer")
    objects = random_objects(random.Random(4), 5)
    parsed = parse_answer(render_answer(objects, plain), "integer")
    assert parsed.complete and parsed.problems == {}
    assert [(o.desc, o.bins) for o in parsed.objects] == [(o.desc, [coord_bin(c) for c in o.coords]) for o in objects]
    assert parse_answer(render_answer(objects, plain)).problems == {"not_coord_tokens": 5}
    assert parse_answer(render_answer(objects, style), "integer").problems == {"not_coord_tokens": 5}
    for number in ("1000", "-1", "1.5", "01", "1e2"):
        text = answer(f'{{"desc": "a", "bbox_2d": [0, 0, 5, {number}]}}')
        assert parse_answer(text, "integer").problems == {"not_coord_tokens": 1}


def parse_strictly(text: str) -> tuple[str, str, list[int]]:
    """One object by the json module, with coordinate tokens outside of strings replaced by numbers."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"<\|coord_(\d+)\|>", r"\1", part) for part in parts[::2]]
    value = json.loads("".join(parts))
    assert len(value) == 2
    desc = value.pop("desc")
    ((kind, bins),) = value.items()
    return desc, kind, bins


def mutate(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        i, j = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        j = min(j, i + rng.choice((1, 1, 2, 5, 20, 60)))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:i] + text[j:]
        elif kind == 1:
            text = text[:j] + text[i:j] + text[j:]
        elif kind == 2:
            text = (
                text[:i]
                + rng.choice(
                    ['"', "{", "}", "[", "]", ",", "\\", "\n", " ", "<|coord_7|>", "<|im_end|>", "\ud83d", "é", "\x00"]
                )
                + text[i:]
            )
        elif kind == 3:
            text = text[:i]
        elif kind == 4:
            text = text[:i] + text[i:j][::-1] + text[j:]
        else:
            k = rng.randrange(len(text) + 1)
            text = text[:i] + text[k : k + j - i] + text[j:]
    return text


def test_mutated_answers_never_raise_and_never_invent_objects():
    rng = random.Random(11)
    seeds = [render_answer(random_objects(rng, rng.randint(0, 4)), style) for style in STYLES for _ in range(50)]
    kept = broken = 0
    for n in range(100_000):
        original = seeds[n % len(seeds)]
        text = mutate(rng, original)
        parsed = parse_answer(text)
        assert parsed.problems.keys() <= REASONS.keys() and all(v > 0 for v in parsed.problems.values())
        previous = 0
        for obj in parsed.objects:
            assert previous <= obj.span[0] < obj.span[1]
            previous = obj.span[1]
            assert parse_strictly(text[slice(*obj.span)]) == (obj.desc, obj.kind, obj.bins)
            obj.desc.encode("utf-8")
            assert all(0 <= k <= 999 for k in obj.bins)
            if obj.kind == "bbox_2d":
                assert obj.bins[0] < obj.bins[2] and obj.bins[1] < obj.bins[3]
            else:
                assert len(obj.bins) >= 6 and len(obj.bins) % 2 == 0
        kept += len(parsed.objects)
        broken += bool(parsed.problems)
        if not parsed.problems:
            objects = parse_answer_strictly(text)
            assert [(o.desc, o.kind, o.bins) for o in parsed.objects] == objects
    assert kept > 50_000 and broken > 50_000


def parse_answer_strictly(text: str) -> list[tuple[str, str, list[int]]]:
    """A complete answer by the json module, which an answer without problems must equal."""
    text = re.sub(r"(?:<\|im_end\|>|<\|endoftext\|>|\s)+\Z", "", text)
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"<\|coord_(\d+)\|>", r"\1", part) for part in parts[::2]]
    objects = json.loads("".join(parts))["objects"]
    return [(o["desc"], *next((k, v) for k, v in o.items() if k != "desc")) for o in objects]


@pytest.mark.parametrize(
    "text",
    [
        '{"desc": "' * 100_000,
        '{"desc":' * 100_000,
        " " * 300_000,
        "{ " * 100_000,
        "[" * 300_000,
        '{"objects": [' * 50_000,
        '{"objects": [' + '{"desc": "\\' * 50_000,
        '"bbox_2d" :' * 50_000 + "{",
        '{"desc":"a", "bbox_2d":[' + "<|coord_1|>, " * 30_000,
        '{"desc": "a", ' * 50_000,
        "}]" * 100_000,
        answer(*[box("cat", 1, 2, 3, 4)] * 5_000),
    ],
    ids=range(12),
)
def test_time_is_linear_in_the_length(text):
    began = time.perf_counter()
    parse_answer(text)
    assert time.perf_counter() - began < 2.0


BOX = "[<|coord_1|>, <|coord_2|>, <|coord_30|>, <|coord_40|>]"
GOOD = f'{{"desc": "cat", "bbox_2d": {BOX}}}'
UNREADABLE = {
    "trailing comma": f'{{"desc": "cat", "bbox_2d": {BOX},}}',
    "single quotes": f"{{'desc': 'cat', \"bbox_2d\": {BOX}}}",
    "repeated key": f'{{"desc": "cat", "desc": "dog", "bbox_2d": {BOX}}}',
    "repeated box": f'{{"desc": "cat", "bbox_2d": {BOX}, "bbox_2d": {BOX}}}',
    "unescaped quote": f'{{"desc": "12" cat", "bbox_2d": {BOX}}}',
    "other key": f'{{"label": "cat", "bbox_2d": {BOX}}}',
    "numbers": '{"desc": "cat", "bbox_2d": [1, 2, 30, 40]}',
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_object_that_cannot_be_read_is_counted(name, count):
    for objects in ([*[UNREADABLE[name]] * count, GOOD], [GOOD, *[UNREADABLE[name]] * count]):
        answer = parse_answer('{"objects": [' + ", ".join(objects) + "]}")
        assert len(answer.objects) == 1
        assert sum(answer.problems.values()) >= count, answer.problems


def test_objects_before_a_cut_off_tail_are_counted():
    tail = ", ".join([GOOD, *[UNREADABLE["other key"]] * 2, '{"desc": "dog", "bbox_2d": [<|coord_1|>'])
    answer = parse_answer('{"objects": [' + tail)
    assert len(answer.objects) == 1 and answer.problems == {"bad_syntax": 2, "cut_off": 1}


def test_an_answer_follows_the_reasoning():
    draft, final = ('{"objects": [' + ", ".join([GOOD] * n) + "]}" for n in (2, 1))
    for text in (f"<think>maybe {draft}</think>\n{final}", f"maybe {draft}</think>{final}"):
        answer = parse_answer(text)
        assert len(answer.objects) == 1 and answer.problems == {"text_before_answer": 2} and answer.complete
    described = '{"objects": [' + GOOD.replace("cat", "</think>") + "]}"
    assert parse_answer(described).objects[0].desc == "</think>" and not parse_answer(described).problems
