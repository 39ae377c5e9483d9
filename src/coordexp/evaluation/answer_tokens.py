"""Objects in answers that write coordinates as tokens: Rex-Omni, LocateAnything, Florence-2 and PaliGemma.

Each reader yields (label, box, score) with the box in the model's own bins; `answer_formats` declares their range. An
object that cannot be read is counted by reason (`answer_items.REASONS`), or yielded with a box or label that the caller
counts as invalid. Of a truncated answer, all complete boxes are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from coordexp.evaluation.answer_items import Item

_SPECIAL = re.compile(r"</?s>|<pad>|<bos>|<eos>|<\|im_end\|>|<\|endoftext\|>|<end_of_turn>")
_BIN = re.compile(r"<(\d+)>")
_PARTIAL_TOKEN = re.compile(r"<[^<>]*\Z")
_REX_OBJECT = re.compile(
    r"(?:<\|object_ref_start\|>((?:(?!<\|).)*)<\|object_ref_end\|>\s*)?"
    r"<\|box_start\|>(.*?)(<\|box_end\|>|(?=<\|object_ref_start\|>|<\|box_start\|>)|\Z)",
    re.DOTALL,
)
_REX_TAG = re.compile(r"<\|(?:object_ref|box)_(?:start|end)\|>")
_LOCATE_PART = re.compile(
    r"<ref>((?:(?!<ref>|<box>).)*?)</ref>|<box>(.*?)(</box>|(?=<ref>|<box>|</ref>)|\Z)", re.DOTALL
)
_FLORENCE_RUN = re.compile(r"([^<>]*)((?:<loc_\d+>)+)")
_PALIGEMMA_RUN = re.compile(r"((?:<loc\d{4}>)+)(?:\s*<seg\d{3}>)*([^<>;]*)")


def is_empty_answer(text: str) -> bool:
    """Whether the text says that there are no objects: nothing but special tokens, or only `None` boxes."""
    text = _SPECIAL.sub("", text)
    text = re.sub(r"(?is)<\|box_start\|>\s*none\s*<\|box_end\|>|<box>\s*none\s*</box>", "", text)
    text = re.sub(r"(?s)<\|object_ref_start\|>[^<>]*<\|object_ref_end\|>|<ref>[^<>]*</ref>", "", text)
    return not text.strip(" \t\r\n,.;")


def rex_omni_items(text: str, problems: Counter[str]) -> Iterator[Item]:
    """`<|object_ref_start|>cat<|object_ref_end|><|box_start|><x1><y1><x2><y2>, <x1>...<|box_end|>`; absent: `None`."""
    text, position = _SPECIAL.sub("", text), 0
    for match in _REX_OBJECT.finditer(text):
        _count_remainder(text[position : match.start()], _REX_TAG, "<|object_ref_start|>", problems, last=False)
        position = match.end()
        label, inner, end = match.groups()
        if inner.strip().lower() == "none":
            continue
        chunks = inner.split(",")
        cut_off = not end and position == len(text)
        for i, chunk in enumerate(chunks):
            if cut_off and i == len(chunks) - 1 and not _box(chunk):
                problems["cut_off"] += 1
            else:
                yield label and label.strip(), _box(chunk), 1.0
    _count_remainder(text[position:], _REX_TAG, "<|object_ref_start|>", problems, last=True)


def locate_anything_items(text: str, problems: Counter[str]) -> Iterator[Item]:
    """`<ref>cat</ref><box><x1><y1><x2><y2></box><box>...</box>`; no object: `<box>none</box>`."""
    text, position, label, boxes = _SPECIAL.sub("", text), 0, None, 1
    for match in _LOCATE_PART.finditer(text):
        _count_remainder(text[position : match.start()], _BIN, "<ref>", problems, last=False)
        position = match.end()
        name, inner, end = match.groups()
        if name is not None:
            problems.update({"no_box": 1} if not boxes else {})
            label, boxes = name.strip(), 0
            continue
        boxes += 1
        if inner.strip().lower() == "none":
            continue
        if not end and position == len(text) and not _box(inner):
            problems["cut_off"] += 1
        else:
            yield label, _box(inner), 1.0
    _count_remainder(text[position:], _BIN, "<ref>", problems, last=True)
    if not boxes:
        problems["cut_off"] += 1


def florence_items(text: str, problems: Counter[str]) -> Iterator[Item]:
    """`cat<loc_x1><loc_y1><loc_x2><loc_y2><loc_x1>...dog<loc_x1>...`: a label, then four tokens per box."""
    text, partial = _without_partial_token(text)
    position = 0
    for match in _FLORENCE_RUN.finditer(text):
        problems.update({"not_json": 1} if text[position : match.start()].strip() else {})
        position = match.end()
        bins = [int(k) for k in re.findall(r"<loc_(\d+)>", match.group(2))]
        yield from _boxes_of_run(match.group(1).strip(), bins, problems, last=position == len(text))
    _count_tail(text[position:] if position else "", partial, problems)


def paligemma_items(text: str, problems: Counter[str]) -> Iterator[Item]:
    """`<locY1><locX1><locY2><locX2> cat ; <locY1>... dog`: four tokens of four digits, then the label."""
    text, partial = _without_partial_token(text)
    position = 0
    for match in _PALIGEMMA_RUN.finditer(text):
        problems.update({"not_json": 1} if text[position : match.start()].strip(" \t\r\n;") else {})
        position = match.end()
        bins = [int(k) for k in re.findall(r"<loc(\d{4})>", match.group(1))]
        yield from _boxes_of_run(match.group(2).strip(), bins, problems, last=position == len(text))
    _count_tail(text[position:] if position else "", partial, problems)


def _without_partial_token(text: str) -> tuple[str, bool]:
    """The text without special tokens and an unfinished token at its end, and whether there was one."""
    text = _SPECIAL.sub("", text)
    match = _PARTIAL_TOKEN.search(text)
    return (text[: match.start()], True) if match else (text, False)


def _box(text: str) -> list[int] | None:
    """The four bins of `<x1><y1><x2><y2>`, or None for anything else."""
    bins = _BIN.findall(text)
    return [int(k) for k in bins] if len(bins) == 4 and not _BIN.sub("", text).strip() else None


def _boxes_of_run(label: str, bins: list[int], problems: Counter[str], *, last: bool) -> Iterator[Item]:
    """Four bins per box; fewer than four left over are an object that is cut off or has an invalid box."""
    for i in range(0, len(bins) - 3, 4):
        yield label, bins[i : i + 4], 1.0
    if len(bins) % 4:
        problems["cut_off" if last else "bad_box"] += 1


def _count_tail(tail: str, partial: bool, problems: Counter[str]) -> None:
    """Count an object of which only the label or an unfinished token (`partial`) follows the last box."""
    if tail.strip(" \t\r\n,;.") or (partial and not problems["cut_off"]):
        problems["cut_off"] += 1


def _count_remainder(part: str, tag: re.Pattern[str], opening: str, problems: Counter[str], *, last: bool) -> None:
    """Count the objects in a part of the text that the format does not allow."""
    opened = part.count(opening)
    if last and (opened or (_PARTIAL_TOKEN.search(part) and part.strip().startswith("<"))):
        problems["cut_off"] += 1
        opened -= 1
    if opened > 0:
        problems["no_box"] += opened
    elif not opened and (len(_BIN.findall(part)) >= 4 if last else tag.search(part)):
        problems["bare_box"] += 1
