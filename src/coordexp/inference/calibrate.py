"""Calibrated scores: how often a detection with these raw terms is right, learnt on a calibration split.

Fit on images that neither training nor the evaluation uses. What is right, wrong or not judged is what the
evaluation says at IoU .5: COCO's rules, or those of federated truth. Records lack the annotations that the
conversion left out, crowds above all: a detection without an object is not judged where its category has such ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import isotonic_regression, minimize

from coordexp.datasets.categories import Category
from coordexp.evaluation.detections import Detections, collect_detections, read_predictions
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS, match
from coordexp.evaluation.ground_truth import GroundTruth, ground_truth_from_records
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.reliability import correctness
from coordexp.inference.options import CalibrationMethod
from coordexp.records import RAW_SCORE, Detection, Metadata, Prediction, Record, read_records
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines, read_json, sha256_file, write_json, write_jsonl

FEATURES = ("next_logprob", "desc_logprob", "slot_logmass", "slot_logprob", "log_spread")
MIN_OF_EACH = 5


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fitted map from raw terms to the probability of being right.

    logistic: `weights` and `bias` on `FEATURES` after subtracting `means` and dividing by `scales`.
    isotonic: linear between the points (`knots`, `values`), on the raw score.
    fitted: what it was learnt from: hashes of the files, counts, and the IoU of a match.
    """

    method: CalibrationMethod
    fitted: dict[str, Any]
    bias: float = 0.0
    weights: list[float] = []
    means: list[float] = []
    scales: list[float] = []
    knots: list[float] = []
    values: list[float] = []

    def probability(self, detections: Sequence[Detection]) -> np.ndarray:
        """Probability of being right, float64 [N] in [0, 1]."""
        if self.method == "isotonic":
            return np.interp([raw_score(d) for d in detections], self.knots, self.values)
        terms = (features(detections) - self.means) / self.scales
        return _sigmoid(terms @ np.array(self.weights) + self.bias)


def raw_score(detection: Detection) -> float:
    """The score before any calibration."""
    return detection.score_parts.get(RAW_SCORE, detection.score)


def features(detections: Sequence[Detection]) -> np.ndarray:
    """`FEATURES` of each detection, float64 [N, 5]; DataError for detections without score parts."""
    rows = []
    for detection in detections:
        parts = detection.score_parts
        missing = [name for name in (*FEATURES[:-1], "spread") if name not in parts]
        if missing:
            fix = "calibrate predictions of `predict`, or use method isotonic"
            raise DataError(located("detection without score parts", field=missing[0], found=sorted(parts), fix=fix))
        rows.append([*(parts[name] for name in FEATURES[:-1]), math.log(parts["spread"] + 1e-4)])
    return np.array(rows, dtype=np.float64).reshape(-1, len(FEATURES))


def fit(
    predictions_jsonl: str | Path,
    records_jsonl: str | Path,
    categories: Sequence[Category],
    out: str | Path,
    method: CalibrationMethod = "logistic",
    *,
    federated: bool,
    trained_on: Sequence[str | Path] = (),
) -> Calibration:
    """Learn from the predictions of a calibration split and its pixel-space records; writes the calibration to `out`.

    `categories` are the data set's; `federated` says that only some categories of a image were looked for
    (LVIS). DataError when a calibration image occurs in one of `trained_on`, the records of training: a model is
    surer of images that it has seen than it is right about others.
    """
    records = list(read_records(records_jsonl, "pixel"))
    for path in trained_on:
        _refuse_seen(records, path)
    rows = list(read_predictions(predictions_jsonl))
    ground_truth = ground_truth_from_records(records, list(categories), federated=federated)
    found, _ = collect_detections(rows, ground_truth, LabelMap(ground_truth.categories))
    unmapped = np.flatnonzero((found.category < 0) & (not federated))
    judged, right = correctness(match(ground_truth, found, federated=federated), unmapped)
    known = right | ~_open(ground_truth, found, judged)
    judged, right = judged[known], right[known]
    every = [detection for _, row in rows for detection in row.detections]
    fitted = {
        "predictions": sha256_file(predictions_jsonl),
        "records": sha256_file(records_jsonl),
        "images": len(rows),
        "detections": len(judged),
        "right": int(right.sum()),
        "iou": float(IOU_THRESHOLDS[0]),
    }
    calibration = fit_detections([every[i] for i in found.input_index[judged]], right, method, fitted)
    write_json(out, calibration)
    return calibration


def fit_detections(
    detections: Sequence[Detection], right: np.ndarray, method: CalibrationMethod, fitted: dict
) -> Calibration:
    """Learn from `detections` and bool [N] `right`; DataError when one kind is nearly absent."""
    if min(int(right.sum()), int((~right).sum())) < MIN_OF_EACH:
        fix = "use more images, or leave the scores as they are"
        found = {"right": int(right.sum()), "wrong": int((~right).sum())}
        raise DataError(
            located("too little to calibrate on", expected=f"at least {MIN_OF_EACH} of each", found=found, fix=fix)
        )
    if method == "isotonic":
        return _fit_isotonic(np.array([raw_score(d) for d in detections]), right, fitted)
    return _fit_logistic(features(detections), right, fitted)


def load(path: str | Path) -> Calibration:
    """A calibration that `fit` wrote."""
    try:
        return msgspec.convert(read_json(path), Calibration)
    except msgspec.ValidationError as error:
        raise DataError(located(f"not a calibration: {error}", file=path, fix="fit it again")) from error


def calibrated(prediction: Prediction, calibration: Calibration) -> Prediction:
    """`prediction` with calibrated scores; the raw ones stay in `score_parts`. Doing it twice changes nothing."""
    if not prediction.detections:
        return prediction
    scores = calibration.probability(prediction.detections).tolist()
    detections = [
        msgspec.structs.replace(d, score=score, score_parts=d.score_parts | {RAW_SCORE: raw_score(d)})
        for d, score in zip(prediction.detections, scores, strict=True)
    ]
    return msgspec.structs.replace(prediction, detections=detections)


def apply(predictions_jsonl: str | Path, calibration: Calibration, out: str | Path) -> int:
    """Write `predictions_jsonl` with calibrated scores to `out`; the count of lines."""
    return write_jsonl(out, (calibrated(row, calibration) for _, row in read_predictions(predictions_jsonl)))


def _open(ground_truth: GroundTruth, found: Detections, rows: np.ndarray) -> np.ndarray:
    """Bool [N]: detections `rows` of a category that the records do not hold all annotations of, as left-out crowds."""
    category = found.category[rows]
    codes = found.image[rows] * len(ground_truth.categories) + category
    return (category >= 0) & np.isin(codes, ground_truth.not_exhaustive)


def _refuse_seen(records: Sequence[Record], trained_on: str | Path) -> None:
    """DataError when `trained_on` holds one of the images, told by image id and file name."""
    calibration = {_name(record.metadata) for record in records}
    for number, line in enumerate_lines(trained_on):
        seen = _name(_decode_seen(line, trained_on, number).metadata)
        if seen in calibration:
            fix = "train on train_rest.coord.jsonl, which leaves the calibration images out"
            raise DataError(
                located(f"calibration image {seen[0]!r} was trained on", file=trained_on, line=number, fix=fix)
            )


class _Seen(msgspec.Struct):
    metadata: Metadata


_decoder = msgspec.json.Decoder(_Seen)


def _decode_seen(line: bytes, path: str | Path, number: int) -> _Seen:
    try:
        return _decoder.decode(line)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise DataError(located(f"not a record: {error}", file=path, line=number)) from error


def _name(metadata: Metadata) -> tuple[int | str, str]:
    return metadata.image_id, Path(metadata.file_name or "").name


def _fit_logistic(terms: np.ndarray, right: np.ndarray, fitted: dict) -> Calibration:
    """Maximum likelihood with a weak ridge, so that separable data still has one answer."""
    means, scales = terms.mean(0), terms.std(0) + 1e-9
    scaled = (terms - means) / scales
    sign = np.where(right, 1.0, -1.0)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled @ theta[1:] + theta[0])
        slope = -sign * _sigmoid(-margin)
        value = np.logaddexp(0, -margin).sum() + 0.5 * theta[1:] @ theta[1:]
        return value, np.concatenate([[slope.sum()], scaled.T @ slope + theta[1:]])

    theta = minimize(objective, np.zeros(scaled.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Calibration(
        "logistic", fitted, float(theta[0]), theta[1:].tolist(), means=means.tolist(), scales=scales.tolist()
    )


def _fit_isotonic(scores: np.ndarray, right: np.ndarray, fitted: dict) -> Calibration:
    """Pool-adjacent-violators, then linear between the centres of the pools so that the ranking keeps its steps."""
    order = np.argsort(scores, kind="stable")
    result = isotonic_regression(right[order].astype(float))
    edges = result.blocks
    knots = [float(scores[order][a:b].mean()) for a, b in itertools.pairwise(edges)]
    values = [float(result.x[a]) for a in edges[:-1]]
    return Calibration("isotonic", fitted, knots=knots, values=values)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
