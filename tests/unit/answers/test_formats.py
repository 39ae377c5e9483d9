"""The answer formats: their exact text, parsing of complete and damaged answers, and their order of objects."""

from __future__ import annotations

import random
import runpy
import time
from pathlib import Path

import pytest

from coordexp.answers.formats import FORMATS, format_of
from coordexp.answers.parse import parse_answer
from coordexp.answers.parsed_answer import REASONS
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.records import Object, coord_token
from coordexp.runtime.errors import ConfigError, ModelError

STYLES = [PromptStyle(answer_format=name, coordinates=c) for name in FORMATS.names() for c in ("token", "integer")]
COMPACT = [style for style in STYLES if style.answer_format != "json"]
by_style = pytest.mark.parametrize("style", STYLES, ids=lambda s: f"{s.answer_format}-{s.coordinates}")
by_compact_style = pytest.mark.parametrize("style", COMPACT, ids=lambda s: f"{s.answer_format}-{s.coordinates}")
DESCS = ("cat", "cat", "dog", 'a "big" one', "a, b; c: d", "x]}", "1 < 2", "back\\slash", "犬", "~", "e\u0301 \t")


def shape(desc: str, *bins: int) -> Object:
    kind = "bbox_2d" if len(bins) == 4 else "poly"
    return Object(desc, 1, [k / 999 for k in bins], **{kind: [coord_token(k) for k in bins]})


def boxes(rng: random.Random, count: int) -> list[Object]:
    """Boxes and triangles with random descriptions, in the order of no format."""
    found = []
    for _ in range(count):
        x1, x2 = sorted(rng.sample(range(1000), 2))
        y1, y2 = sorted(rng.sample(range(1000), 2))
        found.append(shape(rng.choice(DESCS), *((x1, y1, x2, y2) if rng.random() < 0.8 else (x1, y1, x2, y1, x1, y2))))
    return found


def content(objects):
    return [(obj.desc, [int(str(token)[8:-2]) for token in obj.coords]) for obj in objects]


CAT, OTHER_CAT, DOG = shape("cat", 1, 20, 300, 999), shape("cat", 5, 6, 7, 8), shape("dog", 0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("style", "text", "empty"),
    [
        (
            PromptStyle(answer_format="grouped"),
            '{"cat":<|coord_1|><|coord_20|><|coord_300|><|coord_999|>,<|coord_5|><|coord_6|><|coord_7|><|coord_8|>;'
            '"dog"~<|coord_0|><|coord_1|> <|coord_2|><|coord_3|> <|coord_4|><|coord_5|>}',
            "{}",
        ),
        (
            PromptStyle(answer_format="grouped", coordinates="integer"),
            '{"cat":1 20 300 999,5 6 7 8;"dog"~0 1 2 3 4 5}',
            "{}",
        ),
        (
            PromptStyle(answer_format="box_tokens"),
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|><|coord_1|><|coord_20|><|coord_300|><|coord_999|>"
            "<|box_end|><|box_start|><|coord_5|><|coord_6|><|coord_7|><|coord_8|><|box_end|>"
            "<|object_ref_start|>dog<|object_ref_end|><|quad_start|><|coord_0|><|coord_1|>,<|coord_2|><|coord_3|>,"
            "<|coord_4|><|coord_5|><|quad_end|>",
            "",
        ),
        (
            PromptStyle(answer_format="box_tokens", coordinates="integer"),
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,20),(300,999)<|box_end|>"
            "<|box_start|>(5,6),(7,8)<|box_end|>"
            "<|object_ref_start|>dog<|object_ref_end|><|quad_start|>(0,1),(2,3),(4,5)<|quad_end|>",
            "",
        ),
    ],
)
def test_answers_as_text(style, text, empty):
    assert render_answer([CAT, OTHER_CAT, DOG], style) == text
    assert render_answer([], style) == empty


@by_style
def test_parsing_a_rendered_answer_returns_its_objects(style):
    rng = random.Random(3)
    for count in (0, 1, 2, 5, 9):
        objects = boxes(rng, count)
        text = render_answer(objects, style)
        for tail in ("", "<|im_end|>", "<|im_end|>\n"):
            parsed = format_of(style).parse(text + tail)
            assert [(obj.desc, obj.bins) for obj in parsed.objects] == content(objects)
            assert parsed.complete and not parsed.problems
        for obj in parsed.objects:
            assert text[slice(*obj.desc_span)] == format_of(style).escape(obj.desc) + format_of(style).terminator
            ends = [obj.bins[0], obj.bins[-1]]
            first, last = map(coord_token if style.coordinates == "token" else str, ends)
            written = text[slice(*obj.coords_span)].strip("()")
            assert written.startswith(first) and written.endswith(last)


@by_style
def test_a_truncated_answer_keeps_its_complete_objects(style):
    objects = [CAT, OTHER_CAT, shape("dog", 9, 8, 70, 60)]
    text = render_answer(objects, style)
    whole = format_of(style).parse(text).objects
    for end in [obj.coords_span[1] - 1 for obj in whole]:
        parsed = format_of(style).parse(text[:end])
        assert parsed.objects == [obj for obj in whole if obj.coords_span[1] < end]
        assert parsed.problems == {"cut_off": 1} and not parsed.complete


@by_compact_style
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("300", "1000", "not_coord_tokens"),
        ("999", "19", "disordered_box"),
        ("999", "20", "empty_box"),
        ("cat", " ", "empty_desc"),
        ("cat", "\\x", "bad_string"),
        ("cat", "\\ud800", "bad_string"),
    ],
)
def test_an_object_that_cannot_be_used_is_counted(style, old, new, reason):
    text = render_answer([CAT, shape("dog", 5, 6, 7, 8)], style).replace(old, new, 1)
    parsed = format_of(style).parse(text)
    assert [obj.desc for obj in parsed.objects] == ["dog"]
    assert parsed.problems == {reason: 1} and parsed.complete


@by_compact_style
def test_boxes_without_four_coordinates_are_counted(style):
    text = render_answer([shape("cat", 1, 2, 30, 40, 50, 60), shape("dog", 5, 6, 7, 8)], style)
    parsed = format_of(style).parse(text.replace("~", ":").replace("quad", "box").replace("> <", "><"))
    assert [obj.desc for obj in parsed.objects] == ["dog"] and parsed.problems == {"wrong_count": 1}


@by_compact_style
def test_the_answer_is_what_follows_the_reasoning(style):
    text = render_answer([CAT], style)
    for before in ("<think>\n\n</think>\n\n", "<think>" + text + "</think>", "Sure: "):
        parsed = format_of(style).parse(before + text + "<|im_end|>")
        assert [obj.desc for obj in parsed.objects] == ["cat"]
        assert set(parsed.problems) == {"text_before_answer"}
    assert "text_after_answer" in format_of(style).parse(text + " That is all.").problems
    assert format_of(style).parse("I see a cat.").problems == {"no_answer": 1}


@by_compact_style
def test_damaged_answers_are_parsed_without_errors(style):
    """What remains of the objects is read, and something is counted if one of them is lost."""
    rng = random.Random(5)
    pieces = [*'{}";:,~()<>\\ 7', "<|box_start|>", "<|box_end|>", "<|object_ref_end|>", "<|coord_5|>", "</think>"]
    for _ in range(1500):
        objects = [shape(rng.choice(("cat", "dog")), *coords) for coords in ((1, 2, 30, 40), (5, 6, 70, 80))]
        text = render_answer(objects, style)
        at, stop = rng.randrange(len(text)), rng.randrange(4)
        text = text[:at] + rng.choice(["", *pieces]) + text[at + stop :]
        parsed = format_of(style).parse(text)
        assert set(parsed.problems) <= set(REASONS) and all(parsed.problems.values())
        assert len(parsed.objects) >= 2 or parsed.problems, text


@by_compact_style
def test_time_is_linear_in_the_length(style):
    objects = render_answer([CAT] * 5_000, style)
    tags = [f"<|{tag}|>" * 20_000 for tag in ("object_ref_start", "box_start", "coord_1")]
    for text in (objects, objects[:-30], *tags, '{"' * 90_000, '{"a";"\\' * 40_000, '"' * 200_000):
        began = time.process_time()
        format_of(style).parse(text)
        assert time.process_time() - began < 2.0


def test_grouped_answers_list_the_objects_of_a_description_together():
    grouped = format_of(PromptStyle(answer_format="grouped"))
    polygon = shape("cat", 1, 2, 3, 4, 5, 6)
    arranged = grouped.arrange([CAT, DOG, OTHER_CAT, polygon, DOG])
    assert arranged == [CAT, OTHER_CAT, DOG, DOG, polygon]
    assert grouped.arrange(arranged) == arranged
    for name in ("json", "box_tokens"):
        assert format_of(PromptStyle(answer_format=name)).arrange([DOG, CAT, DOG]) == [DOG, CAT, DOG]


def test_a_group_is_completed_before_the_next_description():
    grouped, json = (format_of(PromptStyle(answer_format=name)) for name in ("grouped", "json"))
    cat, dog = grouped.item(CAT), grouped.item(DOG)
    assert grouped.candidates(cat, [cat, dog, cat]) == [0, 2]
    assert grouped.candidates(cat, [dog, dog]) == [0, 1] == grouped.candidates(None, [cat, dog])
    assert grouped.candidates(cat, [dog, cat]) == [0, 1]  # not arranged: the group is opened again
    assert json.candidates(cat, [cat, dog, cat]) == [0, 1, 2]


def test_an_unknown_format_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'grouped'"):
        parse_answer("", answer_format="group")


def test_a_tokenizer_without_the_special_tokens_is_refused():
    box_tokens = format_of(PromptStyle(answer_format="box_tokens"))
    box_tokens.check_tokens({*box_tokens.special_tokens, "<|im_end|>"})
    with pytest.raises(ModelError, match="box_start"):
        box_tokens.check_tokens({"<|im_end|>"})


def test_a_format_is_added_by_defining_one_class():
    """The example of docs/architecture.md: rendering and the grammar follow from the texts that it defines."""
    from coordexp.inference.grammar import automaton

    code = runpy.run_path(str(Path(__file__).parents[3] / "docs/examples/plugins/lines.py"))
    assert FORMATS["lines"] is code["Lines"]
    style = PromptStyle(answer_format="lines", coordinates="integer")
    objects = [CAT, shape('a "dog"', 5, 6, 7, 8)]
    text = render_answer(objects, style)
    assert text == '"cat" 1 20 300 999\n"a \\"dog\\"" 5 6 7 8\nend'
    assert [(obj.desc, obj.bins) for obj in format_of(style).parse(text).objects] == content(objects)
    truncated = format_of(style).parse(text[:-4])
    assert len(truncated.objects) == 2 and not truncated.complete
    built = automaton.build(style)
    assert built.walk(built.start, text.encode()) == built.end
    assert built.walk(built.start, b'"cat" 1 20 300\n') is None
