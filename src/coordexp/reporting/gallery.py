"""Images with truth and predictions drawn over them, each box with what became of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coordexp.datasets.categories import Category
from coordexp.evaluation import detections as columns
from coordexp.evaluation import error_types as mistakes
from coordexp.evaluation.greedy_matching import match
from coordexp.evaluation.ground_truth import GroundTruth, of_records
from coordexp.evaluation.label_mapping import Label
from coordexp.records import Prediction, Record, read_records
from coordexp.runtime.errors import DataError, located

THUMBNAIL = 560  # longest side in pixels
JPEG_QUALITY = 78
BOXES_DRAWN = 60  # of a image, best first; more would hide it
PLATE, LETTER = 16, 7.6  # height of a text and width of a letter, pixels
WORDS = {
    "duplicate": "found twice",
    "poor_box": "box does not fit",
    "wrong_category": "other category",
    "background": "nothing there",
    "unmapped": "no such category",
}


@dataclass(frozen=True)
class Shape:
    """One drawn box in thumbnail pixels with its text; `kind` is truth, missed, right, wrong or unjudged."""

    kind: str
    x: float
    y: float
    w: float
    h: float
    text: str
    score: float


@dataclass(frozen=True)
class Card:
    """One image of the gallery; `image` is a data URI, sizes are thumbnail pixels."""

    title: str
    caption: str
    image: str
    width: int
    height: int
    shapes: list[Shape]
    labels: list[Shape]
    not_drawn: int
    answer: str


def choose(images: dict[str, Any], count: int) -> list[tuple[str, Any]]:
    """(heading, image id) of up to `count` images: best, worst and most confidently wrong in turn, none twice."""
    wrong = list(dict.fromkeys(row["image_id"] for row in images["confident_wrong"]))
    lists = {
        "Best": [row["image_id"] for row in images["best"]],
        "Worst": [row["image_id"] for row in images["worst"]],
        "Most confidently wrong": wrong,
    }
    chosen: dict[Any, str] = {}
    for place in range(max((len(ids) for ids in lists.values()), default=0)):
        for heading, ids in lists.items():
            if place < len(ids) and len(chosen) < count:
                chosen.setdefault(ids[place], heading)
    order = list(lists)
    return sorted(((heading, i) for i, heading in chosen.items()), key=lambda row: order.index(row[0]))


def cards(
    chosen: list[tuple[str, Any]],
    records: dict[Any, Record],
    predictions: dict[Any, Prediction],
    folder: Path,
    result: dict,
) -> list[tuple[str, list[Card]]]:
    """Cards by heading. `folder` is where the records' image paths start; `result` is eval.json."""
    rows = [predictions[i] for _, i in chosen]
    ground_truth = _truth([records[i] for _, i in chosen], result)
    shapes = _shapes(ground_truth, rows, result, [records[i] for _, i in chosen])
    grouped: dict[str, list[Card]] = {}
    for heading, image_id in chosen:
        card = _card(records[image_id], predictions[image_id], folder, shapes[image_id])
        grouped.setdefault(heading, []).append(card)
    return list(grouped.items())


def find_records(path: Path, wanted: set[Any]) -> dict[Any, Record]:
    """Records of the wanted images by id; DataError when one is missing."""
    found = {r.metadata.image_id: r for r in read_records(path, "pixel") if r.metadata.image_id in wanted}
    return _complete(found, wanted, path)


def find_predictions(path: Path, wanted: set[Any]) -> dict[Any, Prediction]:
    """Predictions of the wanted images by id; DataError when one is missing."""
    found = {row.image_id: row for _, row in columns.read(path) if row.image_id in wanted}
    return _complete(found, wanted, path)


def _complete(found: dict, wanted: set, path: Path) -> dict:
    missing = wanted - set(found)
    if missing:
        fix = "give the files that eval.json was made from"
        raise DataError(located(f"image {min(missing, key=str)!r} is missing", file=path, field="image_id", fix=fix))
    return found


def _truth(records: list[Record], result: dict) -> GroundTruth:
    ids = {obj.category_id for record in records for obj in record.objects}
    ids |= {i for i in result["mapping"]["by_description"].values() if i is not None}
    ids |= {i for r in records for i in (*r.metadata.neg_category_ids, *r.metadata.not_exhaustive_category_ids)}
    return of_records(records, [Category(id=i, name=str(i)) for i in sorted(ids)], federated=True)


def _shapes(
    ground_truth: GroundTruth, rows: list[Prediction], result: dict, records: list[Record]
) -> dict[Any, list[Shape]]:
    """Boxes of every image in [0, 1] of it."""
    index = {c.id: k for k, c in enumerate(ground_truth.categories)}
    ids = result["mapping"]["by_description"]

    def label(desc: str) -> Label:
        return Label(None, "unknown") if ids.get(desc) is None else Label(index[ids[desc]], "exact")

    found, _ = columns.collect(((f"image {row.image_id}", row) for row in rows), ground_truth, label)
    federated = result["images"]["protocol"] == "lvis"
    matches = match(ground_truth, found, federated=federated)
    unmapped = np.flatnonzero(found.category < 0)
    status = np.full(len(found), "unjudged", dtype=object)
    status[unmapped] = "unmapped"
    status[matches.row[matches.matched[:, 0]]] = "right"
    for row, kind in zip(*mistakes.false_positives(ground_truth, found, matches, unmapped[:0]), strict=True):
        status[row] = mistakes.KINDS[kind]
    names = [obj.desc for record in records for obj in record.objects]
    shapes: dict[Any, list[Shape]] = {image_id: [] for image_id in ground_truth.image_ids}
    for m in range(len(ground_truth.image)):
        kind = "truth" if matches.found[m, 0] or ground_truth.crowd[m] else "missed"
        text = names[ground_truth.annotation_id[m]] + (" (crowd)" if ground_truth.crowd[m] else "")
        shapes[ground_truth.image_ids[ground_truth.image[m]]].append(
            _shape(kind, ground_truth.box[m], ground_truth.sizes[ground_truth.image[m]], text, 1)
        )
    for row in range(len(found)):
        what = status[row]
        kind = what if what in ("right", "unjudged") else "wrong"
        if what == "unmapped" and federated:
            kind = "unjudged"  # as in the numbers: wrong only where the truth is exhaustive
        text = f"{found.descriptions[found.desc[row]]} {found.score[row]:.2f}"
        text += "" if kind == "right" else f" · {WORDS.get(what, 'not judged')}"
        box, size = found.box[row], ground_truth.sizes[found.image[row]]
        shapes[ground_truth.image_ids[found.image[row]]].append(_shape(kind, box, size, text, float(found.score[row])))
    return shapes


def _shape(kind: str, box: np.ndarray, size: np.ndarray, text: str, score: float) -> Shape:
    x, y, w, h = (box / np.tile(size, 2)).tolist()
    return Shape(kind, x, y, w, h, text, score)


def _card(record: Record, prediction: Prediction, folder: Path, shapes: list[Shape]) -> Card:
    uri, width, height = _thumbnail(folder / record.images[0])
    scaled = [
        Shape(s.kind, s.x * width, s.y * height, s.w * width, s.h * height, s.text, s.score) for s in _limited(shapes)
    ]
    count = {kind: sum(s.kind == kind for s in shapes) for kind in ("right", "wrong", "truth", "missed", "unjudged")}
    objects = count["truth"] + count["missed"]
    caption = f"{count['right']} right, {count['wrong']} wrong, {count['missed']} of {objects} missed"
    caption += f", {count['unjudged']} not judged" if count["unjudged"] else ""
    title = f"Image {record.metadata.image_id}"
    labels = _labels(scaled, width, height)
    return Card(title, caption, uri, width, height, scaled, labels, len(shapes) - len(scaled), prediction.text)


def _labels(shapes: list[Shape], width: int, height: int) -> list[Shape]:
    """Text plates above, inside or below their boxes; one that finds no free place is left to the tooltip."""
    placed: list[Shape] = []
    for shape in sorted(shapes, key=lambda s: (s.kind in ("truth", "missed"), -s.score)):
        room = int((width - 8) / LETTER)
        text = shape.text if len(shape.text) <= room else shape.text[: max(1, room - 1)] + "…"
        w = len(text) * LETTER + 6
        x = min(max(shape.x, 0.0), width - w)
        for y in (shape.y - PLATE, shape.y, shape.y + shape.h - PLATE, shape.y + shape.h):
            if 0 <= y <= height - PLATE and not any(_overlap(x, y, w, other) for other in placed):
                placed.append(Shape(shape.kind, x, y, w, PLATE, text, shape.score))
                break
    return placed


def _overlap(x: float, y: float, w: float, other: Shape) -> bool:
    return x < other.x + other.w and other.x < x + w and y < other.y + PLATE and other.y < y + PLATE


def _limited(shapes: list[Shape]) -> list[Shape]:
    ground_truth = [s for s in shapes if s.kind in ("truth", "missed")]
    others = [s for s in shapes if s.kind not in ("truth", "missed")]
    return ground_truth[:BOXES_DRAWN] + others[:BOXES_DRAWN]


def _thumbnail(path: Path) -> tuple[str, int, int]:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            small = image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(located(f"image cannot be read: {error}", file=path)) from error
    scale = min(1.0, THUMBNAIL / max(small.size))
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))), Image.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    # tiny images are shown enlarged, so that boxes and texts can be read
    enlarge = max(1.0, 320 / max(small.size))
    return uri, round(small.width * enlarge), round(small.height * enlarge)


def ids_of(chosen: Iterable[tuple[str, Any]]) -> set[Any]:
    """The image ids of a choice."""
    return {image_id for _, image_id in chosen}
