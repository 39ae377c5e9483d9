"""Score calibration: map the score parts of a detection to the probability that it is correct.

The map is fitted on a calibration split that neither training nor evaluation uses. A detection is correct, wrong or
ignored by the rules of the evaluation at IoU 0.5, COCO's or those of federated ground truth. Records do not contain the
annotations that the conversion left out (crowds, mostly): an unmatched detection whose category has such annotations in
the image is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import isotonic_regression, minimize

from coordexp.datasets.categories import Category
from coordexp.evaluation.detections import DetectionTable, collect_detections, read_predictions
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS, match
from coordexp.evaluation.ground_truth import GroundTruth, ground_truth_from_records
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.reliability import correctness
from coordexp.inference.options import CalibrationMethod, PredictOptions, score_options
from coordexp.records import RAW_SCORE, Detection, Metadata, Prediction, Record, read_records, software_file
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import NOT_JSON, enumerate_lines, read_json, sha256_file, write_json, write_jsonl

REQUIRED = ("next_logprob", "desc_logprob", "slot_logmass", "slot_logprob", "spread")
FEATURES = (*REQUIRED[:-1], "log_spread", "continued_logprob", "votes")
TIE_STEP = 1e-6  # difference between calibrated scores that would be equal otherwise
MIN_PER_CLASS = 5  # correct and wrong detections needed to fit


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fitted map from score parts to the probability of a correct detection.

    logistic: `weights` and `bias` for `FEATURES`, standardised by `means` and `scales`.
    isotonic: linear interpolation between the points (`knots`, `values`) of the raw score.
    fitted: what it was fitted on: file hashes, counts, the IoU threshold, and the `score_options` of the predictions if
        they are known.
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
        """Probability that each detection is correct, float64 [N] in [0, 1]."""
        if self.method == "isotonic":
            return np.interp([raw_score(d) for d in detections], self.knots, self.values)
        terms = (features(detections)[:, : len(self.means)] - self.means) / self.scales
        return _sigmoid(terms @ np.array(self.weights) + self.bias)

    @property
    def options(self) -> PredictOptions | None:
        """Options of prediction with the `score_options` that it was fitted with; None if they are unknown."""
        return _as_options(self.fitted["options"]) if self.fitted.get("options") else None

    def check(self, options: PredictOptions | None, file: str | Path) -> None:
        """DataError that names `file` if scores predicted with `options` mean something else; None: unknown."""
        if options is None or self.options is None:
            return
        fitted, used = score_options(self.options), score_options(options)
        if differing := [name for name in fitted | used if fitted.get(name) != used.get(name)]:
            name, rest = differing[0], ", ".join(differing[1:])
            problem = "the calibration was fitted with another value" + (f"; other differences: {rest}" if rest else "")
            facts = {"field": f"predict.{name}", "expected": fitted.get(name), "found": used.get(name)}
            fix = "predict with the options of the calibration, or fit one on predictions with these options"
            raise DataError(located(problem, file=file, fix=fix, **facts))


def _as_options(recorded: dict[str, Any]) -> PredictOptions:
    try:
        return msgspec.convert(recorded, PredictOptions)
    except msgspec.ValidationError as error:
        fix = "load the plug-ins that prediction used, or fit the calibration again with this version"
        raise DataError(located(f"unknown options of prediction: {error}", found=recorded, fix=fix)) from error


def options_of(predictions_jsonl: str | Path) -> PredictOptions | None:
    """Options with the `score_options` that predictions were made with, from the file beside them; None: unknown.

    DataError if their parts were made with different ones.
    """
    file = software_file(predictions_jsonl)
    entries = read_json(file) if file.is_file() else []
    found = [options for entry in entries if (options := entry.get("score_options"))]
    if not found:
        return None
    if different := [options for options in found[1:] if options != found[0]]:
        fix = "predict all images with the same options"
        problem = "the predictions were made with different options"
        raise DataError(located(problem, file=file, expected=found[0], found=different[0], fix=fix))
    return _as_options(found[0])


def raw_score(detection: Detection) -> float:
    """The score before calibration."""
    return detection.score_parts.get(RAW_SCORE, detection.score)


def features(detections: Sequence[Detection]) -> np.ndarray:
    """`FEATURES` of each detection, float64 [N, 7]; DataError if a detection has no score parts."""
    rows = []
    for detection in detections:
        parts = detection.score_parts
        missing = [name for name in REQUIRED if name not in parts]
        if missing:
            fix = "calibrate predictions written by `predict`, or use method isotonic"
            raise DataError(located("a detection has no score parts", field=missing[0], found=sorted(parts), fix=fix))
        row = [*(parts[name] for name in REQUIRED[:-1]), math.log(parts["spread"] + 1e-4)]
        rows.append([*row, parts.get("continued_logprob", 0.0), parts.get("votes", 1.0)])
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
    """Fit on the predictions of a calibration split and its pixel-space records; writes the calibration to `out`.

    categories: all categories of the dataset.
    federated: whether only some categories of each image are annotated exhaustively (LVIS).
    trained_on: the training records. DataError if one contains a calibration image: a model is overconfident on images
        that it was trained on.
    """
    records, options = list(read_records(records_jsonl, "pixel")), options_of(predictions_jsonl)
    for path in trained_on:
        _refuse_seen(records, path)
    rows = list(read_predictions(predictions_jsonl))
    ground_truth = ground_truth_from_records(records, list(categories), federated=federated)
    found, _ = collect_detections(rows, ground_truth, LabelMap(ground_truth.categories))
    unmapped = np.flatnonzero((found.category < 0) & (not federated))
    judged, correct = correctness(match(ground_truth, found, federated=federated), unmapped)
    known = correct | ~_maybe_unannotated(ground_truth, found, judged)
    judged, correct = judged[known], correct[known]
    detections = [detection for _, row in rows for detection in row.detections]
    fitted = {
        "predictions": sha256_file(predictions_jsonl),
        "records": sha256_file(records_jsonl),
        "images": len(rows),
        "detections": len(judged),
        "correct": int(correct.sum()),
        "iou": float(IOU_THRESHOLDS[0]),
        "options": score_options(options) if options else None,
    }
    calibration = fit_detections([detections[i] for i in found.input_index[judged]], correct, method, fitted)
    write_json(out, calibration)
    return calibration


def fit_detections(
    detections: Sequence[Detection], correct: np.ndarray, method: CalibrationMethod, fitted: dict
) -> Calibration:
    """Fit on N `detections` and bool [N] `correct`; DataError if nearly all are correct, or nearly all wrong."""
    found = {"correct": int(correct.sum()), "wrong": int((~correct).sum())}
    if min(found.values()) < MIN_PER_CLASS:
        fix = "increase calibrate.images, or set calibrate.method: none"
        expected = f"at least {MIN_PER_CLASS} of each"
        raise DataError(located("too few detections to calibrate", expected=expected, found=found, fix=fix))
    if method == "isotonic":
        return _fit_isotonic(np.array([raw_score(d) for d in detections]), correct, fitted)
    return _fit_logistic(features(detections), correct, fitted)


def load(path: str | Path) -> Calibration:
    """Read a calibration written by `fit`."""
    try:
        return msgspec.convert(read_json(path), Calibration)
    except msgspec.ValidationError as error:
        raise DataError(
            located(f"not a calibration: {error}", file=path, fix="fit it again (rule calibrate)")
        ) from error


def calibrated(prediction: Prediction, calibration: Calibration) -> Prediction:
    """`prediction` with calibrated scores; `score_parts` keeps the raw ones. Idempotent."""
    if not prediction.detections:
        return prediction
    scores = calibration.probability(prediction.detections).tolist()
    detections = [
        msgspec.structs.replace(d, score=score, score_parts=d.score_parts | {RAW_SCORE: raw_score(d)})
        for d, score in zip(prediction.detections, scores, strict=True)
    ]
    return msgspec.structs.replace(prediction, detections=detections)


def apply(predictions_jsonl: str | Path, calibration: Calibration, out: str | Path) -> int:
    """Write `predictions_jsonl` with calibrated scores to `out`; returns the number of lines.

    DataError if the predictions were made with options that change what a score means.
    """
    calibration.check(options_of(predictions_jsonl), predictions_jsonl)
    return write_jsonl(out, (calibrated(row, calibration) for _, row in read_predictions(predictions_jsonl)))


def _maybe_unannotated(ground_truth: GroundTruth, found: DetectionTable, rows: np.ndarray) -> np.ndarray:
    """Whether the records lack annotations of the category in the image, for detections `rows`; bool [N]."""
    category = found.category[rows]
    codes = found.image[rows] * len(ground_truth.categories) + category
    return (category >= 0) & np.isin(codes, ground_truth.not_exhaustive)


def _refuse_seen(records: Sequence[Record], trained_on: str | Path) -> None:
    """DataError if `trained_on` contains one of the images, identified by image id and file name."""
    calibration = {_image_key(record.metadata) for record in records}
    for number, line in enumerate_lines(trained_on):
        key = _image_key(_decode_metadata(line, trained_on, number).metadata)
        if key in calibration:
            fix = "train on train_rest.coord.jsonl, which excludes the calibration images"
            problem = f"calibration image {key[0]!r} is in the training data"
            raise DataError(located(problem, file=trained_on, line=number, fix=fix))


class _RecordMetadata(msgspec.Struct):
    metadata: Metadata


_decoder = msgspec.json.Decoder(_RecordMetadata)


def _decode_metadata(line: bytes, path: str | Path, number: int) -> _RecordMetadata:
    try:
        return _decoder.decode(line)
    except NOT_JSON as error:
        raise DataError(located(f"not a record: {error}", file=path, line=number)) from error


def _image_key(metadata: Metadata) -> tuple[int | str, str]:
    return metadata.image_id, Path(metadata.file_name or "").name


def _fit_logistic(terms: np.ndarray, correct: np.ndarray, fitted: dict) -> Calibration:
    """Logistic regression with a weak L2 penalty, so that separable data has a finite solution."""
    means, spread = terms.mean(0), terms.std(0)
    scales = np.where(spread > 0, spread + 1e-9, 1.0)  # a constant term has no weight
    scaled = (terms - means) / scales
    sign = np.where(correct, 1.0, -1.0)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled @ theta[1:] + theta[0])
        slope = -sign * _sigmoid(-margin)
        value = np.logaddexp(0, -margin).sum() + 0.5 * theta[1:] @ theta[1:]
        return value, np.concatenate([[slope.sum()], scaled.T @ slope + theta[1:]])

    theta = minimize(objective, np.zeros(scaled.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Calibration(
        "logistic", fitted, float(theta[0]), theta[1:].tolist(), means=means.tolist(), scales=scales.tolist()
    )


def _fit_isotonic(scores: np.ndarray, correct: np.ndarray, fitted: dict) -> Calibration:
    """Isotonic regression: constant over the scores of a block, and linear between two blocks.

    Equal scores are one point, whose value is their share of correct detections, so that the result does not depend on
    the order of the detections. Values rise by up to 2 `TIE_STEP` within a block, which keeps the order of the scores.
    """
    points, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(index, weights=correct) / counts
    result = isotonic_regression(share, weights=counts)
    first, last = result.blocks[:-1], result.blocks[1:] - 1
    ends = np.where(first < last, np.stack([first, last]), first)  # [2, B]
    value = result.x[first]
    gaps = np.diff(value, prepend=-1, append=2)
    step = np.minimum(TIE_STEP, np.minimum(gaps[:-1], gaps[1:]) / 4) * (first < last)
    values = np.clip(np.stack([value - step, value + step]), 0, 1)
    kept = np.stack([np.ones_like(first, dtype=bool), first < last]).T.ravel()
    return Calibration(
        "isotonic", fitted, knots=points[ends].T.ravel()[kept].tolist(), values=values.T.ravel()[kept].tolist()
    )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
