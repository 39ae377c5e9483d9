"""Mutated answers in every format: nothing raises, and every opening of an object is either read or counted."""

from __future__ import annotations

import json
import random
import re

from coordexp.answers.parse import parse_answer
from coordexp.evaluation import answer_formats
from coordexp.evaluation.answer_formats import ANSWER_FORMATS

LABELS = ("cat", "a [red] cat", 'the "big" one', "it's", "Öl 油", "10, 20", "dog: brown")
PIECES = (
    *"{}[]\",:'<>\\ \n",
    "```json\n",
    "```",
    "<think>",
    "</think>",
    "null",
    "NaN",
    "1e9",
    "-5",
    "“",
    "<box>",
    "</ref>",
)
SIZE = (640, 480)
OPENINGS = {  # of an object, in formats that are not JSON
    "internvl": ("<ref>", "<box>"),
    "rex-omni": ("<|box_start|>",),
    "locate-anything": ("<box>",),
    "florence-2": ("<loc_",),
    "paligemma": ("<loc",),
}
STRUCTURED = ("moondream", "grounding-dino", "groundingdino", "mmdet")
TEXT_FORMATS = tuple(name for name in ANSWER_FORMATS if name not in STRUCTURED)


def own_object(rng: random.Random, coordinates: str) -> str:
    bins = sorted(rng.sample(range(1000), 4))
    shown = ", ".join(f"<|coord_{k}|>" if coordinates == "token" else str(k) for k in bins)
    desc = json.dumps(rng.choice(LABELS), ensure_ascii=False)
    return f'{{"desc": {desc}, "bbox_2d": [{shown}]}}'


def external_object(rng: random.Random, format: str) -> str:
    box = [rng.randrange(1000) for _ in range(4)]
    label = rng.choice(LABELS)
    match format:
        case "internvl":
            return f"<ref>{label}</ref><box>[{json.dumps(box)}]</box>"
        case "rex-omni":
            return f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{_tokens(box, '<{}>')}<|box_end|>"
        case "locate-anything":
            return f"<ref>{label}</ref><box>{_tokens(box, '<{}>')}</box>"
        case "florence-2":
            return label + _tokens(box, "<loc_{}>")
        case "paligemma":
            return f"{_tokens(box, '<loc{:04}>')} {label} ;"
    box_key = ANSWER_FORMATS[format].read.keywords["keys"][0]
    keys = rng.choice(((box_key, "label"), (rng.choice(("bbox", "box_2d", "rect")), "name")))
    pairs = [(keys[0], box), (keys[1], label)]
    rng.shuffle(pairs)
    return json.dumps(dict(pairs), ensure_ascii=False)


def _tokens(box: list[int], token: str) -> str:
    return "".join(token.format(k) for k in box)


def mutated(text: str, rng: random.Random) -> str:
    """`text` with one random change: a piece added, removed, repeated or replaced, or the end cut off."""
    start = rng.randrange(len(text) + 1)
    stop = min(len(text), start + rng.randrange(1, 6))
    kind = rng.randrange(6)
    if kind == 0:
        return text[:start] + rng.choice(PIECES) + text[start:]
    if kind == 1:
        return text[:start] + text[stop:]
    if kind == 2:
        return text[:stop] + text[start:]
    if kind == 3:
        return text[:start] + rng.choice(PIECES) + text[stop:]
    if kind == 4:
        return text[:start]
    return text.replace('"', "'") if rng.random() < 0.3 else text.replace("}", ",}", 1)


def check_answers(count: int, seed: int = 0) -> None:
    """Parse `count` answers of random formats; AssertionError with the text that loses an object."""
    rng = random.Random(seed)
    for _ in range(count):
        format = rng.choice(("token", "integer", *TEXT_FORMATS))
        own = format in ("token", "integer")
        write = own_object if own else external_object
        objects = [write(rng, format) for _ in range(rng.randrange(1, 5))]
        broken = rng.randrange(len(objects))
        for _ in range(rng.randrange(1, 3)):  # only one object is damaged, so that the others must be accounted for
            objects[broken] = mutated(objects[broken], rng)
        opening = OPENINGS.get(format)
        text = "".join(objects) if opening else f"[{', '.join(objects)}]"
        text = f'{{"objects": {text}}}' if own else text
        opened = any(tag in objects[broken] for tag in opening) if opening else objects[broken].startswith("{")
        check_answer(text, format, listed=len(objects) - 1 + opened)


def check_answer(text: str, format: str, listed: int) -> None:
    """Every object that is opened in the text is read or counted."""
    if format in ("token", "integer"):
        parsed = parse_answer(text, format)
        found, problems = len(parsed.objects), parsed.problems
    else:
        read, problems = answer_formats.parse_answer(text, format, SIZE)
        found = len(read)
    assert found + sum(problems.values()) >= listed, (format, text, found, problems)


def written_object(rng: random.Random) -> str:
    """One or two boxes in a random notation. All numbers have three digits, and each box has four of them."""
    box, other = ([rng.randrange(100, 1000) for _ in range(4)] for _ in range(2))
    label, second = rng.sample(("cat", "a red dog", "person (left)", "it's", "Öl"), 2)
    corners, points = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), [box[:2], box[2:]]
    keys = ("bbox_2d", "box_2d", "bbox", "box", "rect", "coordinates")
    notations = (
        {rng.choice(keys): box, "label": label},
        {"name": label, rng.choice(keys): box, "attributes": {"colour": "red"}},
        {rng.choice(keys): points, "label": label},
        {rng.choice(keys): corners, "label": label},
        {rng.choice(keys): ", ".join(map(str, box)), "label": label},
        {rng.choice(keys): [box, other], "label": label},
        {"label": label, **corners},
        {label: box},
        {label: points},
        {label: [box, other]},
        {label: box, second: other},
        {label: [box], second: {"bbox_2d": other}},
        {label: {"bbox_2d": box}, second: {"bbox_2d": other}},
        [label, *box],
        [*box, label],
        [label, box],
        [box, label],
        [label, points],
        box,
        [box, other],
    )
    return json.dumps(rng.choice(notations), ensure_ascii=False)


def written_answer(rng: random.Random) -> str:
    """An answer of several objects in random notations."""
    objects = [written_object(rng) for _ in range(rng.randrange(1, 5))]
    text = f"[{', '.join(objects)}]"
    fenced = f"```json\n{text}\n```"
    return rng.choice((text, text, f'{{"objects": {text}}}', fenced, f"I see: {text}.", "\n".join(objects)))


def boxes_written(text: str) -> int:
    """The number of boxes in an answer of `written_answer`, also in a damaged one: a quarter of its numbers."""
    return -(-len(re.findall(r"\d{3}", text)) // 4)


def damaged(text: str, rng: random.Random) -> str:
    """`text` with a character of its notation removed, repeated or replaced, or with the end cut off."""
    at = rng.choice([n for n, character in enumerate(text) if character in '{}[]",:'])
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + rng.choice("{}[]\",:'") + text[at:]
    return text[:at] + rng.choice("{}[]\",:'") + text[at + 1 :] if kind == 2 else text[:at]


def check_notations(count: int, seed: int = 0) -> None:
    """Parse `count` answers in mixed notations, half of them damaged.

    AssertionError if an answer that is JSON has more or fewer boxes, or if more than one damaged answer in a thousand
    loses one (of coordinates that a brace or quote tears apart, the rest is no box).
    """
    rng, lost = random.Random(seed), []
    for n in range(count):
        text, format = written_answer(rng), rng.choice(("json-pixel", "json-1000", "qwen3-vl", "gemini"))
        text = damaged(text, rng) if n % 2 else text
        read, problems = answer_formats.parse_answer(text, format, SIZE)
        listed, counted = boxes_written(text), len(read) + sum(problems.values())
        assert n % 2 or counted == listed, (format, text, listed, len(read), problems)
        lost += [text] if counted < listed else []
    assert len(lost) <= count // 2000, lost[:5]
