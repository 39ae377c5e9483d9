"""Calibration of scores: which detections are correct, expected calibration error, reliability table."""

from __future__ import annotations

import numpy as np

from coordexp.evaluation.greedy_matching import Matches
from coordexp.evaluation.result_types import CalibrationResult, ReliabilityBin

BINS = 10


def correctness(matches: Matches, unmapped: np.ndarray, threshold: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Judged detections (index in DetectionTable, int64 [N]) and whether each is correct (bool [N]).

    `threshold` is an index; 0 is IoU 0.5. Detections matched to a crowd, or of a category that is not exhaustively
    annotated, are left out. `unmapped` are indices of detections without a category that count as wrong.
    """
    judged = ~matches.ignored[:, threshold]
    rows = np.concatenate([matches.row[judged], unmapped])
    return rows, np.concatenate([matches.matched[judged, threshold], np.zeros(len(unmapped), dtype=bool)])


def calibration(score: np.ndarray, correct: np.ndarray, bins: int = BINS) -> CalibrationResult:
    """ECE and MCE over equal-width bins of [0, 1] (Guo et al., 2017), Brier score and reliability table.

    `score` float [N], `correct` bool [N]. Bin b holds scores in (b/bins, (b+1)/bins], the first one also 0. ECE is the
    mean of |mean score - precision| weighted by the number of detections. Scores outside [0, 1] are not
    probabilities: all values are then None and `reason` says so.
    """
    if not len(score):
        return _undefined(0, "no judged detection")
    if score.min() < 0 or score.max() > 1:
        found = f"found {score.min():g} to {score.max():g}, expected 0 to 1"
        return _undefined(len(score), f"scores are not probabilities: {found}")
    correct = correct.astype(np.float64)
    bin_index = np.clip(np.ceil(score * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    mean_score = _ratio(np.bincount(bin_index, score, minlength=bins), count)
    precision = _ratio(np.bincount(bin_index, correct, minlength=bins), count)
    gap = np.abs(mean_score - precision)
    table = [
        ReliabilityBin(
            low=b / bins,
            high=(b + 1) / bins,
            count=int(count[b]),
            mean_score=float(mean_score[b]) if count[b] else None,
            precision=float(precision[b]) if count[b] else None,
        )
        for b in range(bins)
    ]
    return CalibrationResult(
        ece=float((gap * count).sum() / count.sum()),
        mce=float(gap[count > 0].max()),
        brier=float(np.mean((score - correct) ** 2)),
        constant=bool(score.min() == score.max()),
        bins=table,
        detections=len(score),
        reason=None,
    )


def _undefined(detections: int, reason: str) -> CalibrationResult:
    return CalibrationResult(
        ece=None, mce=None, brier=None, constant=None, bins=[], detections=detections, reason=reason
    )


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
