"""From finished answers to detections with scores."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from coordexp.answers.parsed_answer import ParsedObject
from coordexp.geometry.boxes import iou
from coordexp.geometry.norm1000 import LAST_BIN, EmitNorm
from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, ObjectLogprobs
from coordexp.inference.options import PredictOptions
from coordexp.inference.repetition import SuppressedCopies
from coordexp.inference.voting import merge_answers
from coordexp.records import COORD_TOKEN, Detection, Prediction, Record


def build_prediction(
    answers: Sequence[tuple[GenerationState, str, str | None]],
    record: Record,
    options: PredictOptions,
    emit_norm: EmitNorm,
) -> Prediction:
    """The prediction for one record from (answer, text, phrase) of its prompts, in the order of the prompts.

    The `options.samples` answers to one prompt follow each other and are merged. The phrase of a prompt is the
    description of its detections.
    """
    detections: list[Detection] = []
    problems: Counter[str] = Counter()
    for start in range(0, len(answers), options.samples):
        to_one_prompt = []
        for answer, text, phrase in answers[start : start + options.samples]:
            found, found_problems = detections_of(answer, text, (record.width, record.height), emit_norm)
            if phrase is not None:
                found = [msgspec.structs.replace(detection, desc=phrase) for detection in found]
            if options.suppress_repeats:
                kept = without_repeats(found, options.repeat_iou)
                if len(kept) < len(found):
                    problems["repeats_suppressed"] += len(found) - len(kept)
                found = kept
            to_one_prompt.append(found)
            problems.update(found_problems)
        detections += to_one_prompt[0] if options.samples == 1 else _merged(to_one_prompt, options)
    unique, duplicates = drop_duplicates(detections, options.duplicate_iou)
    if duplicates:
        problems["duplicates_dropped" if options.drop_duplicates else "duplicates"] = duplicates
    return Prediction(
        image_id=record.metadata.image_id,
        source_width=record.metadata.source_width,
        source_height=record.metadata.source_height,
        protocol=options.protocol,
        finish="length" if any(answer.finish == "length" for answer, _, _ in answers) else "stop",
        text="\n".join(text for _, text, _ in answers),
        detections=unique if options.drop_duplicates else detections,
        problems=dict(problems),
        token_ids=[token for answer, _, _ in answers for token in answer.tokens],
        token_logprobs=[round(value, 4) + 0.0 for answer, _, _ in answers for value in answer.logprobs],
        truncated_phrases=list(
            dict.fromkeys(p for answer, _, p in answers if p is not None and answer.finish == "length")
        ),
    )


def _merged(answers: list[list[Detection]], options: PredictOptions) -> list[Detection]:
    return merge_answers(answers, options.merge_iou, options.vote_weight)


def detections_of(
    answer: GenerationState, text: str, size: tuple[int, int], emit_norm: EmitNorm = "norm1000"
) -> tuple[list[Detection], dict[str, int]]:
    """Detections of a finished answer, and counts of what could not be used, by reason.

    text: the answer as text. size: (width, height) in pixels of the image that the model saw, for the legacy codec.

    The parser decides what an object is; its coordinates are matched to the decoded slots by the order of the tokens.
    Answers with integer coordinates have no slots: their boxes are the integers, and their scores come from the log
    probabilities of the tokens.
    """
    answer_format = answer.grammar.format
    parsed = answer_format.parse(text)
    problems = Counter(answer.problems)
    problems.update(parsed.problems)
    if answer.token_bytes is not None:
        tokens = list(zip(answer.token_bytes, answer.logprobs, strict=True))
        parts = [text_score_parts(obj, text, tokens) for obj in parsed.objects]
        pairs = zip(parsed.objects, parts, strict=True)
        return [detection_from_text(obj, part, size, emit_norm) for obj, part in pairs], dict(problems)
    logprobs = {obj.first_slot: obj for obj in answer.objects}
    starts = answer_format.coordinate_starts(text)
    detections = []
    for obj in parsed.objects:
        first = bisect.bisect_left(starts, obj.span[0])
        coordinates = answer.slots[first : first + len(obj.bins)]
        detections.append(_detection_from_slots(obj, coordinates, logprobs[first], size, emit_norm))
    return detections, dict(problems)


def decode_coords(bins: Sequence[float], size: tuple[int, int], emit_norm: EmitNorm) -> list[float]:
    """Flat x, y, ... coordinates in [0, 1] from (fractional) bins; `size` is (width, height) in pixels."""
    scale = (1.0, 1.0) if emit_norm == "norm1000" else ((size[0] - 1) / size[0], (size[1] - 1) / size[1])
    return [min(max(k / LAST_BIN * scale[n % 2], 0.0), 1.0) for n, k in enumerate(bins)]


def text_score_parts(obj: ParsedObject, text: str, tokens: Sequence[tuple[bytes, float]]) -> dict[str, float]:
    """Log probabilities (natural) of an object in `text`, of the same tokens that count with the grammar.

    `desc_logprob` is the sum over the tokens of the description and its closing quote. `slot_logprob` is the sum over
    the tokens of the coordinates (coordinate tokens; or digits and the separators that end a number), divided by the
    number of coordinates. Other syntax does not count, and neither does the choice of another object.
    `tokens` are (bytes, log probability) pairs that spell `text` from its start.
    """
    ends = list(itertools.accumulate(len(token_bytes) for token_bytes, _ in tokens))
    slots = [match.span() for match in COORD_TOKEN.finditer(text, *obj.coords_span)] or [obj.coords_span]
    desc = _overlapping(obj.desc_span, text, ends)
    coords = {n for span in slots for n in _overlapping(span, text, ends) if b"}" not in tokens[n][0]}
    return {
        "desc_logprob": sum(tokens[n][1] for n in desc),
        "slot_logprob": sum(tokens[n][1] for n in sorted(coords)) / len(obj.bins),
    }


def _overlapping(span: tuple[int, int], text: str, ends: Sequence[int]) -> range:
    """Indices of the tokens that overlap `span` (in characters of `text`); `ends` are their end offsets in bytes."""
    begin, end = (len(text[:edge].encode()) for edge in span)
    return range(bisect.bisect_right(ends, begin), min(bisect.bisect_left(ends, end) + 1, len(ends)))


def detection_from_text(
    obj: ParsedObject, parts: dict[str, float], size: tuple[int, int], emit_norm: EmitNorm
) -> Detection:
    """A detection whose coordinates are its bins; its score is the product of `parts` (1.0 if empty)."""
    coords = decode_coords(obj.bins, size, emit_norm)
    return Detection(
        desc=obj.desc,
        norm=[min(coords[0::2]), min(coords[1::2]), max(coords[0::2]), max(coords[1::2])],
        score=math.exp(min(0.0, sum(parts.values()))),
        bins=obj.bins,
        score_parts=parts,
        poly=coords if obj.kind == "poly" else None,
    )


def served_detection(
    obj: ParsedObject,
    coordinates: Sequence[DecodedCoordinate],
    parts: dict[str, float],
    size: tuple[int, int],
    emit_norm: EmitNorm,
) -> Detection:
    """A detection from the coordinates that a server reported for its tokens.

    parts: its `text_score_parts`. The score is that of `detections_of`; whether another object follows is unknown.
    """
    logprobs = ObjectLogprobs(0, desc_logprob=parts["desc_logprob"])
    detection = _detection_from_slots(obj, list(coordinates), logprobs, size, emit_norm)
    for name in ("next_logprob", "desc_tokens"):
        del detection.score_parts[name]
    return detection


def drop_duplicates(detections: Sequence[Detection], threshold: float) -> tuple[list[Detection], int]:
    """Detections without duplicates of a better-scored one (same description, IoU >= `threshold`), and their count.

    The order is kept. Of two equal scores, the earlier detection is kept.
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


def without_repeats(detections: Sequence[Detection], threshold: float) -> list[Detection]:
    """Detections of one answer without those that copy an earlier kept one (same description, IoU >= `threshold`).

    The IoU is that of the generated bins, by which the decoder also decides when to close the answer.
    """
    copies = SuppressedCopies(threshold)
    return [detection for detection in detections if copies.add(detection.desc, tuple(detection.bins))]


def score_from_parts(parts: dict[str, float]) -> float:
    """Uncalibrated score in [0, 1]: probability of the description times that of the box.

    The box contributes the geometric mean over its slots of the probability near the mode. `next_logprob` is used only
    by the calibration: whether a model generates another object depends on the order of objects in training. An object
    after the end that the model would have chosen counts with the probability that it exists (`continued_logprob`).
    """
    return math.exp(min(0.0, parts["desc_logprob"] + parts["slot_logmass"] + parts.get("continued_logprob", 0.0)))


def _detection_from_slots(
    obj: ParsedObject,
    coordinates: list[DecodedCoordinate],
    logprobs: ObjectLogprobs,
    size: tuple[int, int],
    emit_norm: EmitNorm,
) -> Detection:
    assert [coordinate.bin for coordinate in coordinates] == obj.bins, "decoded and parsed bins differ"
    coords = decode_coords([coordinate.value for coordinate in coordinates], size, emit_norm)
    xs, ys = coords[0::2], coords[1::2]
    count = len(coordinates)
    parts = {
        "next_logprob": logprobs.next_logprob,
        "desc_logprob": logprobs.desc_logprob,
        "desc_tokens": float(logprobs.desc_tokens),
        "slot_logprob": sum(coordinate.logprob for coordinate in coordinates) / count,
        "slot_logmass": sum(math.log(max(coordinate.mass, 1e-12)) for coordinate in coordinates) / count,
        "spread": sum(coordinate.spread for coordinate in coordinates) / count / LAST_BIN,
    }
    if logprobs.continued_logprob:
        parts["continued_logprob"] = logprobs.continued_logprob
    return Detection(
        desc=obj.desc,
        norm=[min(xs), min(ys), max(xs), max(ys)],
        score=score_from_parts(parts),
        bins=obj.bins,
        spread=[coordinate.spread / LAST_BIN for coordinate in coordinates],
        score_parts=parts,
        poly=coords if obj.kind == "poly" else None,
    )
