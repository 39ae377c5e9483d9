"""From finished answers to detections with scores."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from coordexp.answers.parse import ParsedObject, parse_answer
from coordexp.geometry.boxes import iou
from coordexp.geometry.norm1000 import LAST_BIN, EmitNorm
from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, ObjectTrace
from coordexp.records import COORD_TOKEN, Detection

# coordinates stand outside of JSON strings: what a description spells is no slot
_STRING_OR_SLOT = re.compile(rf'"(?:[^"\\]++|\\.)*+"|{COORD_TOKEN.pattern}', re.DOTALL)


def read_answer(
    answer: GenerationState, text: str, size: tuple[int, int], emit_norm: EmitNorm = "norm1000"
) -> tuple[list[Detection], dict[str, int]]:
    """Detections of a finished answer and what could not be used, counted.

    `text` is the answer's text; `size` (width, height) in pixels of the image that the model saw, which the
    legacy codec needs. The parser decides what is an object; readings join it by the order of the tokens.
    Integer coordinates have no slots: boxes are their integers, scores come from the tokens' probabilities.
    """
    parsed = parse_answer(text, "token" if answer.pieces is None else "integer")
    problems = dict(answer.problems)
    for reason, count in parsed.problems.items():
        problems[reason] = problems.get(reason, 0) + count
    if answer.pieces is not None:
        tokens = list(zip(answer.pieces, answer.logprobs, strict=True))
        parts = [token_logprobs(obj, text, tokens) for obj in parsed.objects]
        return [plain_detection(o, p, size, emit_norm) for o, p in zip(parsed.objects, parts, strict=True)], problems
    traces = {trace.first_slot: trace for trace in answer.objects}
    starts = [match.start() for match in _STRING_OR_SLOT.finditer(text) if match[0][0] != '"']
    detections = []
    for obj in parsed.objects:
        first = bisect.bisect_left(starts, obj.span[0])
        readings = answer.slots[first : first + len(obj.bins)]
        detections.append(_detection(obj, readings, traces[first], size, emit_norm))
    return detections, problems


def decode_coords(bins: Sequence[float], size: tuple[int, int], emit_norm: EmitNorm) -> list[float]:
    """Coordinates in [0, 1] of flat x, y, ... in (fractional) bins; `size` (width, height) in pixels."""
    scale = (1.0, 1.0) if emit_norm == "norm1000" else ((size[0] - 1) / size[0], (size[1] - 1) / size[1])
    return [min(max(k / LAST_BIN * scale[n % 2], 0.0), 1.0) for n, k in enumerate(bins)]


def token_logprobs(obj: ParsedObject, text: str, tokens: Sequence[tuple[bytes, float]]) -> dict[str, float]:
    """Log probabilities (natural) inside an object of `text`, of the same choices as the grammar's own terms.

    `desc_logprob` is the sum over the tokens of the description, its closing quote included; `slot_logprob` the
    sum over the tokens of the coordinates, divided by their number: coordinate tokens alone, or digits and what
    ends a number. Nothing else of the layout counts, least of all whether a further object comes.
    `tokens` are (bytes, log probability) pairs that spell `text` from its beginning.
    """
    ends = list(itertools.accumulate(len(piece) for piece, _ in tokens))
    slots = [match.span() for match in COORD_TOKEN.finditer(text, *obj.coords_span)] or [obj.coords_span]
    desc = _overlapping(obj.desc_span, text, ends)
    coords = {n for span in slots for n in _overlapping(span, text, ends) if b"}" not in tokens[n][0]}
    return {
        "desc_logprob": sum(tokens[n][1] for n in desc),
        "slot_logprob": sum(tokens[n][1] for n in sorted(coords)) / len(obj.bins),
    }


def _overlapping(span: tuple[int, int], text: str, ends: Sequence[int]) -> range:
    """Places of the tokens that share a byte with `span`, characters of `text`; `ends` are the tokens' in bytes."""
    begin, end = (len(text[:edge].encode()) for edge in span)
    return range(bisect.bisect_right(ends, begin), min(bisect.bisect_left(ends, end) + 1, len(ends)))


def plain_detection(
    obj: ParsedObject, parts: dict[str, float], size: tuple[int, int], emit_norm: EmitNorm
) -> Detection:
    """A detection from the text alone: coordinates of its bins, and a score from `parts` (1.0 without any)."""
    coords = decode_coords(obj.bins, size, emit_norm)
    return Detection(
        desc=obj.desc,
        norm=[min(coords[0::2]), min(coords[1::2]), max(coords[0::2]), max(coords[1::2])],
        score=math.exp(min(0.0, sum(parts.values()))),
        bins=obj.bins,
        score_parts=parts,
        poly=coords if obj.kind == "poly" else None,
    )


def drop_duplicates(detections: Sequence[Detection], threshold: float) -> tuple[list[Detection], int]:
    """Detections without those that repeat a better-scored one (same description, IoU of at least `threshold`).

    The order is kept; the count of the dropped ones comes second. Ties go to the earlier detection.
    """
    if len(detections) < 2:
        return list(detections), 0
    boxes = np.array([detection.norm for detection in detections])
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for i in sorted(range(len(detections)), key=lambda n: (-detections[n].score, n)):
        same = (j for j in kept if detections[j].desc == detections[i].desc)
        if all(overlap[i, j] < threshold for j in same):
            kept.append(i)
    return [detections[i] for i in sorted(kept)], len(detections) - len(kept)


def score_of(parts: dict[str, float]) -> float:
    """Uncalibrated score in [0, 1]: certainty of the description times that of the box.

    The box counts with the geometric mean of its slots' probability near the mode. `next_logprob` is left to
    the calibration: how sure a model is of there being a further object depends on the training order.
    """
    return math.exp(min(0.0, parts["desc_logprob"] + parts["slot_logmass"]))


def _detection(
    obj: ParsedObject, readings: list[DecodedCoordinate], trace: ObjectTrace, size: tuple[int, int], emit_norm: EmitNorm
) -> Detection:
    assert [reading.bin for reading in readings] == obj.bins, "slots and parsed bins differ"
    coords = decode_coords([reading.value for reading in readings], size, emit_norm)
    xs, ys = coords[0::2], coords[1::2]
    parts = {
        "next_logprob": trace.next_logprob,
        "desc_logprob": trace.desc_logprob,
        "desc_tokens": float(trace.desc_tokens),
        "slot_logprob": sum(reading.logprob for reading in readings) / len(readings),
        "slot_logmass": sum(math.log(max(reading.mass, 1e-12)) for reading in readings) / len(readings),
        "spread": sum(reading.spread for reading in readings) / len(readings) / LAST_BIN,
    }
    return Detection(
        desc=obj.desc,
        norm=[min(xs), min(ys), max(xs), max(ys)],
        score=score_of(parts),
        bins=obj.bins,
        spread=[reading.spread / LAST_BIN for reading in readings],
        score_parts=parts,
        poly=coords if obj.kind == "poly" else None,
    )
