"""Example images with ground truth and predictions drawn over them, each box with its outcome."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from coordexp.datasets.images import ImageError, open_image
from coordexp.evaluation.detections import DetectionTable, collect_detections, read_predictions
from coordexp.evaluation.error_types import ERROR_TYPES, false_positives
from coordexp.evaluation.greedy_matching import match
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.label_mapping import Label
from coordexp.evaluation.results import EvalResult, Examples
from coordexp.records import Prediction, Record, read_records
from coordexp.reporting.classes import record_ground_truth
from coordexp.runtime.errors import DataError, located

THUMBNAIL = 560  # longest side in pixels
SMALLEST_SHOWN = 320  # longest side in pixels; smaller images are enlarged so that boxes and labels are legible
JPEG_QUALITY = 78
MAX_BOXES = 60  # per image, of the ground truth and of the predictions
LABEL_HEIGHT, LETTER_WIDTH = 16, 7.6  # pixels
GROUND_TRUTH = ("matched", "missed")
OUTCOMES = {
    "duplicate": "duplicate",
    "localisation": "inaccurate box",
    "classification": "wrong category",
    "background": "background",
    "unmapped": "unknown category",
    "ignored": "not judged",
}
ImageId = int | str
T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """One box with its label, in thumbnail pixels; `kind` is matched, missed, correct, wrong or ignored.

    category: its description. error: what is wrong with it, empty for a box without an error.
    """

    kind: str
    x: float
    y: float
    w: float
    h: float
    text: str
    score: float
    category: str = ""
    error: str = ""


@dataclass(frozen=True)
class Card:
    """One image of the gallery; `image` is a data URI, sizes are thumbnail pixels."""

    title: str
    file_name: str | None
    caption: str
    image: str
    width: int
    height: int
    shapes: list[Shape]
    labels: list[Shape]
    not_drawn: int
    answer: str


def choose(examples: Examples, count: int) -> list[tuple[str, ImageId]]:
    """(heading, image id) of up to `count` distinct images, taken from the lists of examples in turn."""
    lists = {
        "Best": [row.image_id for row in examples.best],
        "Worst": [row.image_id for row in examples.worst],
        "Most confident errors": list(dict.fromkeys(row.image_id for row in examples.confident_errors)),
    }
    chosen: dict[ImageId, str] = {}
    for rank in range(max(len(ids) for ids in lists.values())):
        for heading, ids in lists.items():
            if rank < len(ids) and len(chosen) < count:
                chosen.setdefault(ids[rank], heading)
    order = list(lists)
    return sorted(((heading, i) for i, heading in chosen.items()), key=lambda row: order.index(row[0]))


def cards(
    chosen: list[tuple[str, ImageId]],
    records: dict[ImageId, Record],
    predictions: dict[ImageId, Prediction],
    folder: Path,
    result: EvalResult,
) -> list[tuple[str, list[Card]]]:
    """Cards by heading; image paths of the records are relative to `folder`."""
    ids = [image_id for _, image_id in chosen]
    shapes = _shapes([records[i] for i in ids], [predictions[i] for i in ids], result)
    grouped: dict[str, list[Card]] = {}
    for heading, image_id in chosen:
        own = card(records[image_id], predictions[image_id].text, folder, shapes[image_id])
        grouped.setdefault(heading, []).append(own)
    return list(grouped.items())


def find_records(path: Path, image_ids: set[ImageId]) -> dict[ImageId, Record]:
    """Records of these images by id; DataError if one is missing."""
    found = {r.metadata.image_id: r for r in read_records(path, "pixel") if r.metadata.image_id in image_ids}
    return _complete(found, image_ids, path)


def find_predictions(path: Path, image_ids: set[ImageId]) -> dict[ImageId, Prediction]:
    """Predictions of these images by id; DataError if one is missing."""
    found = {row.image_id: row for _, row in read_predictions(path) if row.image_id in image_ids}
    return _complete(found, image_ids, path)


def _complete(found: dict[ImageId, T], image_ids: set[ImageId], path: Path) -> dict[ImageId, T]:
    missing = image_ids - set(found)
    if missing:
        fix = "pass the files that eval.json was computed from"
        raise DataError(located(f"image {min(missing, key=str)!r} is missing", file=path, field="image_id", fix=fix))
    return found


def _shapes(records: list[Record], predictions: list[Prediction], result: EvalResult) -> dict[ImageId, list[Shape]]:
    """Boxes of every image with their outcome, as fractions of the image size."""
    ground_truth = record_ground_truth(records, result, {})
    index = {category.id: k for k, category in enumerate(ground_truth.categories)}
    category_ids = result.mapping.by_description

    def label(desc: str) -> Label:
        category_id = category_ids.get(desc)
        return Label(None, "unknown") if category_id is None else Label(index[category_id], "exact")

    rows = ((f"image {row.image_id}", row) for row in predictions)
    detections, _ = collect_detections(rows, ground_truth, label)
    federated = result.examples.protocol == "lvis"
    outcomes, matched = _outcomes(ground_truth, detections, federated)
    descriptions = [obj.desc for record in records for obj in record.objects]
    shapes: dict[ImageId, list[Shape]] = {image_id: [] for image_id in ground_truth.image_ids}
    for m, image in enumerate(ground_truth.image):
        kind = "matched" if matched[m] or ground_truth.crowd[m] else "missed"
        category = descriptions[ground_truth.annotation_id[m]]
        text = category + (" (crowd)" if ground_truth.crowd[m] else "")
        error = "missed" if kind == "missed" else ""
        drawn = shape(kind, ground_truth.box[m], ground_truth.sizes[image], text, 1, category, error)
        shapes[ground_truth.image_ids[image]].append(drawn)
    for row, image in enumerate(detections.image):
        outcome = outcomes[row]
        kind = outcome if outcome in ("correct", "ignored") else "wrong"
        if outcome == "unmapped" and federated:  # a false positive only if annotations are exhaustive
            kind = "ignored"
        category = detections.descriptions[detections.desc[row]]
        text = f"{category} {detections.score[row]:.2f}"
        text += f" · {OUTCOMES[outcome]}" if kind != "correct" else ""
        error, score = OUTCOMES[outcome] if kind == "wrong" else "", float(detections.score[row])
        drawn = shape(kind, detections.box[row], ground_truth.sizes[image], text, score, category, error)
        shapes[ground_truth.image_ids[image]].append(drawn)
    return shapes


def _outcomes(ground_truth: GroundTruth, detections: DetectionTable, federated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Outcome of each detection at IoU 0.5 (correct, ignored or an error type), and whether each object is matched."""
    matches = match(ground_truth, detections, federated=federated)
    unmapped = np.flatnonzero(detections.category < 0)
    outcomes = np.full(len(detections), "ignored", dtype=object)
    outcomes[unmapped] = "unmapped"
    outcomes[matches.row[matches.matched[:, 0]]] = "correct"
    for row, error in zip(*false_positives(ground_truth, detections, matches, unmapped[:0]), strict=True):
        outcomes[row] = ERROR_TYPES[error]
    return outcomes, matches.object_matched[:, 0]


def shape(kind: str, box: np.ndarray, size: np.ndarray, *facts: Any) -> Shape:
    """A shape in fractions of an image of `size`, from its box x, y, w, h; facts: the other fields of `Shape`."""
    x, y, w, h = (box / np.tile(size, 2)).tolist()
    return Shape(kind, x, y, w, h, *facts)


def card(record: Record, answer: str, folder: Path, shapes: list[Shape], title: str | None = None) -> Card:
    """The card of an image, by default titled with its id; its path is relative to `folder`."""
    uri, width, height = _thumbnail(folder / record.images[0])
    drawn = [replace(s, x=s.x * width, y=s.y * height, w=s.w * width, h=s.h * height) for s in _limited(shapes)]
    count = {kind: sum(s.kind == kind for s in shapes) for kind in (*GROUND_TRUTH, "correct", "wrong", "ignored")}
    objects = count["matched"] + count["missed"]
    caption = f"{count['correct']} correct, {count['wrong']} wrong, {count['missed']} of {objects} missed"
    caption += f", {count['ignored']} not judged" if count["ignored"] else ""
    return Card(
        title=title or f"Image {record.metadata.image_id}",
        file_name=record.metadata.file_name,
        caption=caption,
        image=uri,
        width=width,
        height=height,
        shapes=drawn,
        labels=_labels(drawn, width, height),
        not_drawn=len(shapes) - len(drawn),
        answer=answer,
    )


def _labels(shapes: list[Shape], width: int, height: int) -> list[Shape]:
    """Labels above, inside or below their boxes; one that would overlap another is shown as a tooltip only."""
    placed: list[Shape] = []
    for shape in sorted(shapes, key=lambda s: (s.kind in GROUND_TRUTH, -s.score)):
        max_letters = int((width - 8) / LETTER_WIDTH)
        text = shape.text if len(shape.text) <= max_letters else shape.text[: max(1, max_letters - 1)] + "…"
        w = len(text) * LETTER_WIDTH + 6
        x = min(max(shape.x, 0.0), width - w)
        for y in (shape.y - LABEL_HEIGHT, shape.y, shape.y + shape.h - LABEL_HEIGHT, shape.y + shape.h):
            if 0 <= y <= height - LABEL_HEIGHT and not any(_overlap(x, y, w, other) for other in placed):
                placed.append(Shape(shape.kind, x, y, w, LABEL_HEIGHT, text, shape.score))
                break
    return placed


def _overlap(x: float, y: float, w: float, other: Shape) -> bool:
    return x < other.x + other.w and other.x < x + w and y < other.y + LABEL_HEIGHT and other.y < y + LABEL_HEIGHT


def _limited(shapes: list[Shape]) -> list[Shape]:
    ground_truth = [s for s in shapes if s.kind in GROUND_TRUTH]
    predictions = [s for s in shapes if s.kind not in GROUND_TRUTH]
    return ground_truth[:MAX_BOXES] + predictions[:MAX_BOXES]


def _thumbnail(path: Path) -> tuple[str, int, int]:
    """A JPEG data URI of the image, and the size in pixels at which it is shown."""
    try:
        with open_image(path) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            small = image.convert("RGB")
    except ImageError as error:
        raise DataError(located(f"image cannot be read: {error}", file=path)) from error
    scale = min(1.0, THUMBNAIL / max(small.size))
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))), Image.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    enlarge = max(1.0, SMALLEST_SHOWN / max(small.size))
    return uri, round(small.width * enlarge), round(small.height * enlarge)
