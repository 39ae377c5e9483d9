"""How far scores can be trusted: which detections are right, expected calibration error, reliability table."""

from __future__ import annotations

from typing import Any

import numpy as np

from coordexp.evaluation.greedy_matching import Matches

BINS = 10


def verdicts(matches: Matches, unmapped: np.ndarray, at: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rows of Detections int64 [N], right bool [N]) of everything that is judged at threshold `at` (0: IoU .5).

    Left out are detections that took a crowd, or that federated truth says nothing about. `unmapped` are rows
    without a category that count as wrong.
    """
    judged = ~matches.ignored[:, at]
    rows = np.concatenate([matches.row[judged], unmapped])
    return rows, np.concatenate([matches.matched[judged, at], np.zeros(len(unmapped), dtype=bool)])


def calibration(score: np.ndarray, right: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """ECE and MCE over equal-width bins of [0, 1], Brier score, reliability table.

    `score` float [N], `right` bool [N] (a hit at IoU .5). Bin b holds scores in (b/bins, (b+1)/bins], the
    first one 0 as well. ECE is the mean of |mean score - share right| weighted by the bins' counts. Scores
    outside [0, 1] are no probabilities: every number is None and `reason` says so.
    """
    empty = {"ece": None, "mce": None, "brier": None, "constant": None, "bins": []}
    if not len(score):
        return {**empty, "detections": 0, "reason": "no judged detection"}
    if score.min() < 0 or score.max() > 1:
        reason = f"scores are not probabilities: found {score.min():g} to {score.max():g}, expected 0 to 1"
        return {**empty, "detections": len(score), "reason": reason}
    right = right.astype(np.float64)
    place = np.clip(np.ceil(score * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    mean_score = _ratio(np.bincount(place, score, minlength=bins), count)
    share = _ratio(np.bincount(place, right, minlength=bins), count)
    gap = np.abs(mean_score - share)
    table = [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "count": int(count[b]),
            "mean_score": float(mean_score[b]) if count[b] else None,
            "share_right": float(share[b]) if count[b] else None,
        }
        for b in range(bins)
    ]
    return {
        "ece": float((gap * count).sum() / count.sum()),
        "mce": float(gap[count > 0].max()),
        "brier": float(np.mean((score - right) ** 2)),
        "constant": bool(score.min() == score.max()),
        "bins": table,
        "detections": len(score),
        "reason": None,
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
