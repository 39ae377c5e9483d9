"""Predictions as columns in pixels of the source image, in an order that does not depend on the file.

Order and tie rule: images by id; within a image by falling score, then description, then x, y, w, h.
Two detections that still tie are the same detection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.label_mapping import Label, LabelMap
from coordexp.records import RAW_SCORE, Detection, Prediction
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines

TIE_RULE = "score falling, then image id, then description, then x, y, w, h of the box; never the file's order"
# Multiplying by a size and back may cost the last bit. Whole and decimal pixels come back exactly.
PIXEL_DECIMALS = 6

_decoder = msgspec.json.Decoder(Prediction)


@dataclass(frozen=True)
class Detections:
    """N detections over the I images of a Truth; `category` is -1 where the description is unmapped."""

    image: np.ndarray  # int64 [N]
    category: np.ndarray  # int64 [N], index or -1
    desc: np.ndarray  # int64 [N], index into descriptions
    box: np.ndarray  # float64 [N, 4], x, y, w, h in pixels
    score: np.ndarray  # float64 [N]
    descriptions: list[str]
    labels: list[Label]
    poly: list[list[float] | None]  # flat, pixels
    source: np.ndarray  # int64 [N], place among the detections as they were read

    def __len__(self) -> int:
        return len(self.image)

    def renumbered(self, index_of: np.ndarray) -> Detections:
        """The same detections where image i has become `index_of[i]`."""
        return replace(self, image=index_of[self.image])

    def take(self, index: np.ndarray) -> Detections:
        """Some of the detections (bool mask or indices), in the order given."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        return Detections(
            self.image[index],
            self.category[index],
            self.desc[index],
            self.box[index],
            self.score[index],
            self.descriptions,
            self.labels,
            [self.poly[i] for i in index] if self.poly else [],
            self.source[index],
        )


@dataclass(frozen=True)
class Answers:
    """What else the predictions file says: images by outcome, problems by reason, protocol names."""

    images: list[int | str]
    without_detections: int
    cut_off: int
    with_problems: int
    problems: dict[str, int]
    protocols: dict[str, int]
    outside_image: int
    degenerate: int
    calibrated: int


def read(path: str | Path) -> Iterator[tuple[str, Prediction]]:
    """(place in the file, prediction) of every line; DataError with file and line for a broken one."""
    for number, line in enumerate_lines(path):
        try:
            yield f"{path}:{number}", _decoder.decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            fix = "predictions.jsonl holds one prediction a line; convert other formats with coordexp.evaluation.external_predictions"
            raise DataError(located(f"not a prediction: {error}", file=path, line=number, fix=fix)) from error


def collect(
    rows: Iterable[tuple[str, Prediction]], ground_truth: GroundTruth, labels: LabelMap
) -> tuple[Detections, Answers]:
    """Columns of all rows, checked against `truth`.

    DataError for a image that the truth does not have, one that occurs twice, one whose size differs, and
    a score or coordinate that is not a finite number.
    """
    seen: dict[int | str, str] = {}
    image, desc, norm, score, poly = [], [], [], [], []
    names: dict[str, int] = {}
    problems, protocols, tally = Counter(), Counter(), Counter()
    for where, row in rows:
        index = _image(where, row, ground_truth, seen)
        problems.update(row.problems)
        protocols[row.protocol] += 1
        tally["empty"] += not row.detections
        tally["cut_off"] += row.finish == "length"
        tally["problems"] += bool(row.problems)
        for i, det in enumerate(row.detections):
            _check_shape(where, i, det)
            image.append(index)
            desc.append(names.setdefault(det.desc, len(names)))
            norm.append(det.norm)
            score.append(det.score)
            tally["calibrated"] += RAW_SCORE in det.score_parts
            poly.append(det.poly)
    columns = _sorted(ground_truth, labels, names, image, desc, norm, score, poly, list(seen.items()))
    norm_array = np.array(norm, dtype=np.float64).reshape(-1, 4)
    answers = Answers(
        images=list(seen),
        without_detections=tally["empty"],
        cut_off=tally["cut_off"],
        with_problems=tally["problems"],
        problems=dict(sorted(problems.items())),
        protocols=dict(sorted(protocols.items())),
        outside_image=int(((norm_array < -1e-9) | (norm_array > 1 + 1e-9)).any(axis=1).sum()),
        degenerate=int((columns.box[:, 2:] <= 0).any(axis=1).sum()),
        calibrated=tally["calibrated"],
    )
    return columns, answers


def _check_shape(where: str, i: int, det: Detection) -> None:
    if len(det.norm) != 4:
        field = f"detections[{i}].norm"
        raise DataError(located("not a box", file=where, field=field, expected="4 numbers", found=det.norm))
    if det.poly is not None and (len(det.poly) < 6 or len(det.poly) % 2):
        field, expected = f"detections[{i}].poly", "an even count of at least 6 numbers"
        raise DataError(located("not a polygon", file=where, field=field, expected=expected, found=det.poly))


def _image(where: str, row: Prediction, ground_truth: GroundTruth, seen: dict[int | str, str]) -> int:
    index = ground_truth.index_of.get(row.image_id)
    if index is None:
        fix = "give the annotation file of the split that was predicted"
        raise DataError(located(f"image {row.image_id!r} is not in the annotations", file=where, fix=fix))
    if row.image_id in seen:
        problem = f"image {row.image_id!r} occurs again, first at {seen[row.image_id]}"
        raise DataError(located(problem, file=where, fix="keep one line for each image"))
    width, height = ground_truth.sizes[index]
    if (row.source_width, row.source_height) != (width, height):
        found = f"{row.source_width}x{row.source_height}"
        problem = f"image {row.image_id!r} has another size"
        raise DataError(
            located(problem, file=where, field="source_width", expected=f"{width:g}x{height:g}", found=found)
        )
    seen[row.image_id] = where
    return index


def _sorted(ground_truth, labels, names, image, desc, norm, score, poly, places) -> Detections:  # type: ignore[no-untyped-def]
    image = np.array(image, dtype=np.int64)
    norm = np.array(norm, dtype=np.float64).reshape(-1, 4)
    score = np.array(score, dtype=np.float64)
    bad = ~np.isfinite(score) | ~np.isfinite(norm).all(axis=1)
    if bad.any():
        at = int(np.argmax(bad))
        image_id = ground_truth.image_ids[image[at]]
        field = "score" if not np.isfinite(score[at]) else "norm"
        found = float(score[at]) if field == "score" else norm[at].tolist()
        problem = f"detection of image {image_id!r} is not a finite number"
        raise DataError(located(problem, file=dict(places)[image_id], field=field, found=found))
    descriptions = sorted(names)
    rank = np.empty(len(names), dtype=np.int64)
    rank[[names[d] for d in descriptions]] = np.arange(len(names))
    desc = rank[np.array(desc, dtype=np.int64)]
    size = np.tile(ground_truth.sizes[image], 2)
    pixels = np.round(norm * size, PIXEL_DECIMALS)
    box = np.concatenate(
        [pixels[:, :2], np.round(np.maximum(pixels[:, 2:] - pixels[:, :2], 0), PIXEL_DECIMALS)], axis=1
    )
    any_poly = any(p is not None for p in poly)
    shapes = _poly_rank(poly) if any_poly else np.zeros(len(image))
    order = np.lexsort((shapes, *box.T[::-1], desc, -score, image))
    found = [labels(d) for d in descriptions]
    category = np.array([-1 if label.category is None else label.category for label in found], dtype=np.int64)
    polys = [_pixels(poly[i], size[i, :2]) for i in order] if any_poly else []
    return Detections(
        image[order], category[desc[order]], desc[order], box[order], score[order], descriptions, found, polys, order
    )


def _poly_rank(poly: list[list[float] | None]) -> np.ndarray:
    keys = [tuple(p or ()) for p in poly]
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([rank[key] for key in keys])


def _pixels(poly: list[float] | None, size: np.ndarray) -> list[float] | None:
    if poly is None:
        return None
    return np.round(np.array(poly, dtype=np.float64).reshape(-1, 2) * size, PIXEL_DECIMALS).ravel().tolist()
