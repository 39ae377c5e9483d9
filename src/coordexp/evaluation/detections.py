"""Predictions as columns, in pixels of the source image and in an order that does not depend on the file.

Order and tie rule: images by id; within an image by falling score, then description, then x, y, w, h of the box.
Detections that are still equal are interchangeable.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.label_mapping import Label, LabelMap
from coordexp.records import RAW_SCORE, Detection, Prediction
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import NOT_JSON, enumerate_lines

TIE_RULE = (
    "detections are ordered by falling score, then image id, description, and x, y, w, h of the box; "
    "the order of the file has no effect"
)
# Dividing by the image size and multiplying again can change the last bit; rounding restores decimal pixel values.
PIXEL_DECIMALS = 6

_decoder = msgspec.json.Decoder(Prediction)


class CategoryDetection(Detection):
    """A detection of an input that names the category by id; `desc` is for people only."""

    category_id: int = -1


@dataclass(frozen=True)
class DetectionTable:
    """N detections in the images of a `GroundTruth`."""

    image: np.ndarray  # int64 [N], index of the image in the ground truth
    category: np.ndarray  # int64 [N], index of the category, -1 if the description is unmapped
    desc: np.ndarray  # int64 [N], index into descriptions
    box: np.ndarray  # float64 [N, 4], x, y, w, h in pixels
    score: np.ndarray  # float64 [N]
    descriptions: list[str]
    labels: list[Label]  # one per description
    poly: list[list[float] | None]  # flat polygons in pixels; empty if no detection has one
    input_index: np.ndarray  # int64 [N], position in the input

    def __len__(self) -> int:
        return len(self.image)

    @property
    def has_area(self) -> np.ndarray:
        """Whether each box has an area; bool [N]."""
        return self.box[:, 2] * self.box[:, 3] > 0

    def renumbered(self, index_of: np.ndarray) -> DetectionTable:
        """The same detections with image index i replaced by `index_of[i]`."""
        return replace(self, image=index_of[self.image])

    def take(self, index: np.ndarray) -> DetectionTable:
        """The selected detections (bool mask or indices), in the order given."""
        if index.dtype == bool:
            if index.all():
                return self
            index = np.flatnonzero(index)
        return DetectionTable(
            self.image[index],
            self.category[index],
            self.desc[index],
            self.box[index],
            self.score[index],
            self.descriptions,
            self.labels,
            [self.poly[i] for i in index] if self.poly else [],
            self.input_index[index],
        )


@dataclass(frozen=True)
class AnswerStats:
    """Counts over the answers of a predictions file."""

    image_ids: list[int | str]
    without_detections: int
    truncated: int
    with_problems: int
    problems: dict[str, int]  # parsing problems by reason
    protocols: dict[str, int]  # answers by prompt protocol
    slices: int  # of all images; 0 if none was predicted in slices
    merged: int  # detections merged into one of another slice
    boxes_outside_image: int
    boxes_without_area: int
    calibrated: int  # detections
    truncated_phrases: dict[int | str, list[str]]  # by id of an image with a truncated answer; []: it is unknown which


def read_predictions(path: str | Path) -> Iterator[tuple[str, Prediction]]:
    """("file:line", prediction) for every line of predictions.jsonl; DataError with file and line if one is invalid."""
    for number, line in enumerate_lines(path):
        try:
            yield f"{path}:{number}", _decoder.decode(line)
        except NOT_JSON as error:
            fix = "expected the lines of predictions.jsonl; name another format with --format (docs/evaluation.md)"
            raise DataError(located(f"not a prediction: {error}", file=path, line=number, fix=fix)) from error


@dataclass
class _Columns:
    """Detections in input order, before sorting."""

    image: array[int] = field(default_factory=partial(array, "q"))
    desc: array[int] = field(default_factory=partial(array, "q"))
    norm: array[float] = field(default_factory=partial(array, "d"))  # four values per detection
    score: array[float] = field(default_factory=partial(array, "d"))
    poly: list[list[float] | None] = field(default_factory=list)
    index_of_desc: dict[tuple[str, int | None], int] = field(default_factory=dict)  # by description and category id

    def add(self, image: int, det: Detection) -> None:
        self.image.append(image)
        key = (det.desc, det.category_id if isinstance(det, CategoryDetection) else None)
        self.desc.append(self.index_of_desc.setdefault(key, len(self.index_of_desc)))
        self.norm.extend(det.norm)
        self.score.append(det.score)
        self.poly.append(det.poly)


def collect_detections(
    rows: Iterable[tuple[str, Prediction]], ground_truth: GroundTruth, labels: LabelMap
) -> tuple[DetectionTable, AnswerStats]:
    """Columns of all predictions; `rows` pairs each with its location in the input, which errors name.

    DataError for an unknown image, a repeated one, one of another size, and a non-finite score or coordinate.
    """
    seen: dict[int | str, str] = {}
    columns, problems, protocols, count = _Columns(), Counter(), Counter(), Counter()
    truncated_phrases: dict[int | str, list[str]] = {}
    for where, row in rows:
        index = _image_index(where, row, ground_truth, seen)
        problems.update(row.problems)
        protocols[row.protocol] += 1
        count["without_detections"] += not row.detections
        if row.finish == "length":
            truncated_phrases[row.image_id] = row.truncated_phrases
        count["with_problems"] += bool(row.problems)
        count["slices"] += len(row.slices)
        count["merged"] += row.merged
        for i, det in enumerate(row.detections):
            _check_shape(where, i, det)
            columns.add(index, det)
            count["calibrated"] += RAW_SCORE in det.score_parts
    detections = _sorted(ground_truth, labels, columns, seen)
    norm = np.asarray(columns.norm).reshape(-1, 4)
    stats = AnswerStats(
        image_ids=list(seen),
        without_detections=count["without_detections"],
        truncated=len(truncated_phrases),
        with_problems=count["with_problems"],
        problems=dict(sorted(problems.items())),
        protocols=dict(sorted(protocols.items())),
        slices=count["slices"],
        merged=count["merged"],
        boxes_outside_image=int(((norm < -1e-9) | (norm > 1 + 1e-9)).any(axis=1).sum()),
        boxes_without_area=int((detections.box[:, 2:] <= 0).any(axis=1).sum()),
        calibrated=count["calibrated"],
        truncated_phrases=truncated_phrases,
    )
    return detections, stats


def _check_shape(where: str, i: int, det: Detection) -> None:
    if len(det.norm) != 4:
        field = f"detections[{i}].norm"
        raise DataError(located("not a box", file=where, field=field, expected="4 numbers", found=det.norm))
    if det.poly is not None and (len(det.poly) < 6 or len(det.poly) % 2):
        field, expected = f"detections[{i}].poly", "an even number of values, at least 6"
        raise DataError(located("not a polygon", file=where, field=field, expected=expected, found=det.poly))


def _image_index(where: str, row: Prediction, ground_truth: GroundTruth, seen: dict[int | str, str]) -> int:
    index = ground_truth.index_of.get(row.image_id)
    if index is None:
        fix = "pass the annotation file of the split that was predicted"
        raise DataError(located(f"image {row.image_id!r} is not in the annotations", file=where, fix=fix))
    if row.image_id in seen:
        problem = f"duplicate image {row.image_id!r}, first at {seen[row.image_id]}"
        raise DataError(located(problem, file=where, fix="keep one line per image"))
    width, height = ground_truth.sizes[index]
    if (row.source_width, row.source_height) != (width, height):
        found = f"{row.source_width}x{row.source_height}"
        problem = f"size of image {row.image_id!r} differs from the annotations"
        raise DataError(
            located(problem, file=where, field="source_width", expected=f"{width:g}x{height:g}", found=found)
        )
    seen[row.image_id] = where
    return index


def _sorted(
    ground_truth: GroundTruth, labels: LabelMap, columns: _Columns, locations: dict[int | str, str]
) -> DetectionTable:
    """Sort the columns by the tie rule and convert boxes to pixels; `locations` of images are for errors."""
    image, score = np.asarray(columns.image), np.asarray(columns.score)
    norm = np.asarray(columns.norm).reshape(-1, 4)
    _check_finite(ground_truth, image, norm, score, locations)
    keys = sorted(columns.index_of_desc, key=lambda key: (key[0], key[1] is not None, key[1] or 0))
    rank = np.empty(len(keys), dtype=np.int64)
    rank[[columns.index_of_desc[key] for key in keys]] = np.arange(len(keys))
    desc = rank[np.asarray(columns.desc)]
    size = ground_truth.sizes[image]
    box = np.empty(norm.shape)
    for axis in (0, 1):
        first, last = (np.round(norm[:, n] * size[:, axis], PIXEL_DECIMALS) for n in (axis, axis + 2))
        box[:, axis], box[:, axis + 2] = first, np.round(np.maximum(last - first, 0), PIXEL_DECIMALS)
    has_poly = any(p is not None for p in columns.poly)
    poly_rank = _poly_rank(columns.poly) if has_poly else np.zeros(len(image))
    order = np.lexsort((poly_rank, *box.T[::-1], desc, -score, image))
    index_of_id = {category.id: i for i, category in enumerate(ground_truth.categories)}
    mapped = [labels(desc) if id is None else _label_of_id(index_of_id.get(id)) for desc, id in keys]
    category = np.array([-1 if label.category is None else label.category for label in mapped], dtype=np.int64)
    return DetectionTable(
        image=image[order],
        category=category[desc[order]],
        desc=desc[order],
        box=box[order],
        score=score[order],
        descriptions=[desc for desc, _ in keys],
        labels=mapped,
        poly=[_pixels(columns.poly[i], size[i]) for i in order] if has_poly else [],
        input_index=order,
    )


def _label_of_id(index: int | None) -> Label:
    return Label(None, "unknown") if index is None else Label(index, "exact")


def _check_finite(
    ground_truth: GroundTruth, image: np.ndarray, norm: np.ndarray, score: np.ndarray, locations: dict[int | str, str]
) -> None:
    bad = ~np.isfinite(score) | ~np.isfinite(norm).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        image_id = ground_truth.image_ids[image[first]]
        field_name = "score" if not np.isfinite(score[first]) else "norm"
        found = float(score[first]) if field_name == "score" else norm[first].tolist()
        problem = f"non-finite detection in image {image_id!r}"
        raise DataError(located(problem, file=locations[image_id], field=field_name, found=found))


def _poly_rank(poly: list[list[float] | None]) -> np.ndarray:
    keys = [tuple(p or ()) for p in poly]
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([rank[key] for key in keys])


def _pixels(poly: list[float] | None, size: np.ndarray) -> list[float] | None:
    if poly is None:
        return None
    return np.round(np.array(poly, dtype=np.float64).reshape(-1, 2) * size, PIXEL_DECIMALS).ravel().tolist()
