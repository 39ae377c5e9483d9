"""Bootstrap over pictures: the picture is the unit that was drawn, so it is the unit that is drawn again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], dict[str, float]]
CONFIDENCE = 0.95


def replicates(statistic: Statistic, pictures: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """`statistic` under `count` resamplings; its argument says how often each picture was drawn, int64 [I]."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        drawn = rng.integers(0, pictures, pictures)
        rows.append(statistic(np.bincount(drawn, minlength=pictures)))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> list[float] | None:
    """Percentile interval [low, high]; None when no replicate has a number."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = (1 - confidence) / 2
    return [float(q) for q in np.quantile(values, [tail, 1 - tail])]


def two_sided_p(differences: np.ndarray) -> float | None:
    """Bootstrap p-value of "no difference": twice the smaller share of replicates on one side of zero."""
    values = differences[~np.isnan(differences)]
    if not len(values):
        return None
    below, above = (values <= 0).mean(), (values >= 0).mean()
    # a count of replicates cannot show less than one of them
    return float(min(1.0, max(2 * min(below, above), 1 / len(values))))
