"""Example phrases of a report, each with its image, targets and answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coordexp.evaluation.phrase_results import PhraseExample, PhraseResult
from coordexp.evaluation.phrases import IOU
from coordexp.geometry.boxes import iou
from coordexp.records import Detection, Prediction, Record
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
    targets = [np.array(record.objects[i].norm_box) for i in indices]
    answer = sorted((d for d in prediction.detections if d.desc == text), key=lambda d: -d.score)
    matched = _matched(targets, answer)
    shapes = []
    for n, (i, box) in enumerate(zip(indices, targets, strict=True)):
        kind = "matched" if n in matched else "missed"
        error = "" if kind == "matched" else "missed"
        shapes.append(shape(kind, _xywh(box), np.ones(2), record.objects[i].desc, 1, record.objects[i].desc, error))
    for detection, target in zip(answer, matched, strict=True):
        kind = WRONG if target is None else "correct"
        error = WRONG if target is None else ""
        facts = (f"{detection.score:.2f}", float(detection.score), "", error)
        shapes.append(shape(kind, _xywh(np.array(detection.norm)), np.ones(2), *facts))
    return shapes


def _matched(targets: list[np.ndarray], answer: list[Detection]) -> list[int | None]:
    """The target that each box matches, None for a false positive; boxes are in the order of their scores."""
    free, matched = set(range(len(targets))), list[int | None]()
    for detection in answer:
        overlap = {n: float(iou(np.array([detection.norm]), targets[n][None])[0, 0]) for n in free}
        best = max(overlap, key=overlap.__getitem__, default=None)
        found = best if best is not None and overlap[best] >= IOU else None
        free.discard(found)  # type: ignore[arg-type]
        matched.append(found)
    return matched


def _xywh(box: np.ndarray) -> np.ndarray:
    return np.concatenate([box[:2], box[2:] - box[:2]])
