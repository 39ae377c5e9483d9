"""Calibrated scores: how often a detection with these raw terms is right, learnt on a held-out split.

Fit on pictures that neither training nor the evaluation uses. A detection is right when it is matched to an
object of its picture with the same description at `iou` or more, each object at most once, certain ones first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from scipy.optimize import isotonic_regression, minimize

from coordexp.contract import Detection, Prediction, Record
from coordexp.errors import DataError, located
from coordexp.geometry.boxes import iou as box_iou
from coordexp.io import enumerate_lines, read_json, read_records, sha256_file, write_json, write_jsonl

Method = Literal["logistic", "isotonic"]
RAW = "raw_score"
FEATURES = ("next_logprob", "desc_logprob", "slot_logmass", "slot_logprob", "log_spread")
MIN_OF_EACH = 5


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fitted map from raw terms to the probability of being right.

    logistic: `weights` and `bias` on `FEATURES` after subtracting `means` and dividing by `scales`.
    isotonic: linear between the points (`knots`, `values`), on the raw score.
    fitted: what it was learnt from: hashes of the files, counts, and the IoU of a match.
    """

    method: Method
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
    return detection.score_parts.get(RAW, detection.score)


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
    out: str | Path,
    method: Method = "logistic",
    iou: float = 0.5,
) -> Calibration:
    """Learn from the predictions of a held-out split and its pixel-space records; writes the calibration to `out`."""
    truth = {record.metadata.image_id: record for record in read_records(records_jsonl, "pixel")}
    detections: list[Detection] = []
    right: list[bool] = []
    for prediction in read_predictions(predictions_jsonl):
        if prediction.image_id not in truth:
            fix = "give the records that these predictions were made for"
            problem = f"no record of image {prediction.image_id}"
            raise DataError(located(problem, file=records_jsonl, fix=fix))
        detections += prediction.detections
        right += matched(prediction.detections, truth[prediction.image_id], iou).tolist()
    fitted = {
        "predictions": sha256_file(predictions_jsonl),
        "records": sha256_file(records_jsonl),
        "detections": len(detections),
        "right": sum(right),
        "iou": iou,
    }
    calibration = fit_detections(detections, np.array(right, dtype=bool), method, fitted)
    write_json(out, calibration)
    return calibration


def fit_detections(detections: Sequence[Detection], right: np.ndarray, method: Method, fitted: dict) -> Calibration:
    """Learn from `detections` and bool [N] `right`; DataError when one kind is nearly absent."""
    if min(int(right.sum()), int((~right).sum())) < MIN_OF_EACH:
        fix = "use more pictures, or leave the scores as they are"
        found = {"right": int(right.sum()), "wrong": int((~right).sum())}
        raise DataError(
            located("too little to calibrate on", expected=f"at least {MIN_OF_EACH} of each", found=found, fix=fix)
        )
    if method == "isotonic":
        return _fit_isotonic(np.array([raw_score(d) for d in detections]), right, fitted)
    return _fit_logistic(features(detections), right, fitted)


def matched(detections: Sequence[Detection], record: Record, threshold: float) -> np.ndarray:
    """Which detections are right, bool [N]; see the top of this module."""
    right = np.zeros(len(detections), dtype=bool)
    objects = [obj for obj in record.objects if not obj.iscrowd]
    if not objects or not detections:
        return right
    overlap = box_iou(np.array([d.norm for d in detections]), np.array([obj.norm_box for obj in objects]))
    same = np.array([[d.desc == obj.desc for obj in objects] for d in detections])
    overlap[~same] = -1
    for i in sorted(range(len(detections)), key=lambda n: (-raw_score(detections[n]), n)):
        best = int(overlap[i].argmax())
        if overlap[i, best] >= threshold:
            right[i] = True
            overlap[:, best] = -1
    return right


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
        msgspec.structs.replace(d, score=score, score_parts=d.score_parts | {RAW: raw_score(d)})
        for d, score in zip(prediction.detections, scores, strict=True)
    ]
    return msgspec.structs.replace(prediction, detections=detections)


def apply(predictions_jsonl: str | Path, calibration: Calibration, out: str | Path) -> int:
    """Write `predictions_jsonl` with calibrated scores to `out`; the count of lines."""
    return write_jsonl(out, (calibrated(row, calibration) for row in read_predictions(predictions_jsonl)))


def read_predictions(path: str | Path) -> list[Prediction]:
    """The lines of a prediction file; DataError with file and line for a broken one."""
    decoder = msgspec.json.Decoder(Prediction)
    rows = []
    for number, line in enumerate_lines(path):
        try:
            rows.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise DataError(located(f"not a prediction: {error}", file=path, line=number)) from error
    return rows


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
