"""One prediction for an image from the predictions for its slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from coordexp.geometry.boxes import area, intersection, iou
from coordexp.geometry.slices import Slice, SliceOptions
from coordexp.records import Detection, Prediction


class SlicePrediction(NamedTuple):
    """The prediction for a slice. asked: categories that its prompts name; None if one of them names none."""

    window: Slice
    prediction: Prediction
    asked: frozenset[str] | None = None


class Placed(NamedTuple):
    """A detection in the coordinates of the image. cut: whether it touches a border of its slice inside the image."""

    detection: Detection
    cut: bool


def merge_slices(slices: Sequence[SlicePrediction], size: tuple[int, int], options: SliceOptions) -> Prediction:
    """The prediction for an image of `size` (width, height) from those for its slices.

    Only boxes of the same description in different slices are merged; the best-scored one is kept, but one that is cut
    off only if it overlaps no other. `detection.slice` is the index into `prediction.slices`, in [0, 1] of the image.
    Answers and tokens are concatenated in the order of the slices, and problems are added up.
    """
    placed = [
        place(detection, n, window, size, options.border)
        for n, (window, prediction, _) in enumerate(slices)
        for detection in prediction.detections
    ]
    groups = groups_of(placed, options)
    windows = [_in_image([0.0, 0.0, 1.0, 1.0], one.window, size) for one in slices]
    detections = [placed[n].detection for n in sorted(groups)]
    if options.score == "mean":
        asked = [one.asked for one in slices]
        detections = [
            msgspec.structs.replace(
                placed[n].detection, score=mean_score([placed[m].detection for m in groups[n]], windows, asked)
            )
            for n in sorted(groups)
        ]
    predictions = [one.prediction for one in slices]
    return msgspec.structs.replace(
        predictions[0],
        finish="length" if any(prediction.finish == "length" for prediction in predictions) else "stop",
        text="\n".join(prediction.text for prediction in predictions),
        detections=detections,
        problems=dict(sum((Counter(prediction.problems) for prediction in predictions), Counter())),
        token_ids=[token for prediction in predictions for token in prediction.token_ids],
        token_logprobs=[value for prediction in predictions for value in prediction.token_logprobs],
        merged=len(placed) - len(groups),
        slices=windows,
        truncated_phrases=list(dict.fromkeys(phrase for one in predictions for phrase in one.truncated_phrases)),
    )


def place(detection: Detection, n: int, window: Slice, size: tuple[int, int], border: float) -> Placed:
    """A detection in slice `n` in the coordinates of the image; its `bins` remain those of the answer."""
    x1, y1, x2, y2 = detection.norm
    inner = (
        window.left > 0,
        window.top > 0,
        window.left + window.width < size[0],
        window.top + window.height < size[1],
    )
    cut = any(i and distance <= border for i, distance in zip(inner, (x1, y1, 1 - x2, 1 - y2), strict=True))
    scale = (window.width / size[0], window.height / size[1])
    moved = msgspec.structs.replace(
        detection,
        norm=_in_image(detection.norm, window, size),
        spread=[value * scale[axis % 2] for axis, value in enumerate(detection.spread)],
        poly=None if detection.poly is None else _in_image(detection.poly, window, size),
        slice=n,
    )
    return Placed(moved, cut)


def groups_of(placed: Sequence[Placed], options: SliceOptions) -> dict[int, list[int]]:
    """For the index of each detection that remains: those of the detections merged into it, itself first.

    Greedy, complete boxes before boxes that are cut off, and by descending score: a box is merged into the first kept
    box of the same description in another slice that it matches. Boxes match with an IoU of at least `options.iou`; a
    box that is cut off also if its intersection is at least `options.containment` of the smaller area.
    """
    if not placed:
        return {}
    boxes = np.array([p.detection.norm for p in placed])
    shared, areas = intersection(boxes, boxes), area(boxes)
    smaller = np.minimum(areas[:, None], areas[None, :])
    contained = np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0) >= options.containment
    overlapping = iou(boxes, boxes) >= options.iou
    slices = np.array([p.detection.slice for p in placed])
    _, labels = np.unique([p.detection.desc for p in placed], return_inverse=True)
    comparable = (labels[:, None] == labels[None, :]) & (slices[:, None] != slices[None, :])
    groups: dict[int, list[int]] = {}
    for n in sorted(range(len(placed)), key=lambda n: (placed[n].cut, -placed[n].detection.score, n)):
        matches = (overlapping[n] | contained[n] if placed[n].cut else overlapping[n]) & comparable[n]
        into = next((kept for kept in groups if matches[kept]), n)
        groups.setdefault(into, []).append(n)
    return groups


def mean_score(
    merged: Sequence[Detection], windows: Sequence[Sequence[float]], asked: Sequence[frozenset[str] | None]
) -> float:
    """The mean score of a box over the slices that contain it entirely and were asked about its description.

    merged: the detections of the box, the kept one first; the best one of each slice counts. windows: slices in [0, 1].
    """
    kept, best = merged[0], dict[int | None, float]()
    for detection in merged:
        best[detection.slice] = max(best.get(detection.slice, 0.0), detection.score)
    showing = {
        n
        for n, ((x1, y1, x2, y2), names) in enumerate(zip(windows, asked, strict=True))
        if (names is None or kept.desc in names)
        and x1 <= kept.norm[0]
        and y1 <= kept.norm[1]
        and x2 >= kept.norm[2]
        and y2 >= kept.norm[3]
    }
    return sum(best.values()) / len(showing | set(best))


def _in_image(coords: Sequence[float], window: Slice, size: tuple[int, int]) -> list[float]:
    """Flat x, y, ... in [0, 1] of a slice as [0, 1] of the image."""
    starts, sides = (window.left, window.top), (window.width, window.height)
    moved = [(starts[n % 2] + value * sides[n % 2]) / size[n % 2] for n, value in enumerate(coords)]
    return [min(max(value, 0.0), 1.0) for value in moved]
