"""Example phrases of a report, each with its image, targets and answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coordexp.evaluation.phrase_results import PhraseExample, PhraseResult
from coordexp.evaluation.phrases import match_targets
from coordexp.geometry.boxes import xyxy_to_xywh
from coordexp.records import Prediction, Record
from coordexp.reporting.gallery import Card, ImageId, Shape, card, find_predictions, find_records, shape

WRONG = "wrong"


def choose(block: PhraseResult, count: int) -> list[tuple[str, PhraseExample]]:
    """(heading, example) of up to `count` phrases, half of them with an exact answer if there are enough."""
    worst = block.worst[: max(count - len(block.best), count // 2)]
    best = block.best[: count - len(worst)]
    return [("Exact answers", example) for example in best] + [("Other answers", example) for example in worst]


def phrase_cards(block: PhraseResult, predictions: Path, records: Path, count: int) -> list[tuple[str, list[Card]]]:
    """Cards by heading; DataError if a record or prediction of an example is missing."""
    chosen = choose(block, count)
    image_ids: set[ImageId] = {example.image_id for _, example in chosen}
    if not image_ids:
        return []
    recorded, predicted = find_records(records, image_ids), find_predictions(predictions, image_ids)
    grouped: dict[str, list[Card]] = {}
    for heading, example in chosen:
        record, prediction = recorded[example.image_id], predicted[example.image_id]
        shapes = _shapes(example.text, record, prediction)
        title = f"“{example.text}”"
        grouped.setdefault(heading, []).append(card(record, "", records.parent, shapes, title))
    return list(grouped.items())


def _shapes(text: str, record: Record, prediction: Prediction) -> list[Shape]:
    """The targets of the first phrase with this text, and the boxes of the answer, each with its outcome."""
    indices = next((phrase.objects for phrase in record.phrases if phrase.text == text), [])
    targets = _boxes([record.objects[i].norm_box for i in indices])
    answer = sorted((d for d in prediction.detections if d.desc == text), key=lambda d: -d.score)
    boxes = _boxes([detection.norm for detection in answer])
    matched = match_targets(boxes, np.zeros(len(boxes), dtype=int), targets, np.zeros(len(targets), dtype=int))
    shapes = []
    for n, (i, box) in enumerate(zip(indices, targets, strict=True)):
        kind = "matched" if n in matched else "missed"
        error = "" if kind == "matched" else "missed"
        shapes.append(shape(kind, box, np.ones(2), record.objects[i].desc, 1, record.objects[i].desc, error))
    for detection, box, target in zip(answer, boxes, matched, strict=True):
        kind = WRONG if target < 0 else "correct"
        error = WRONG if target < 0 else ""
        facts = (f"{detection.score:.2f}", float(detection.score), "", error)
        shapes.append(shape(kind, box, np.ones(2), *facts))
    return shapes


def _boxes(corners: Sequence[Sequence[float]]) -> np.ndarray:
    """Boxes x, y, w, h, float64 [N, 4]."""
    return xyxy_to_xywh(np.reshape(corners, (-1, 4)))
