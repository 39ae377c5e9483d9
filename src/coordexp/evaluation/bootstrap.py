"""Bootstrap over images: the image is the unit that was drawn, so it is the unit that is drawn again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], dict[str, float]]
CONFIDENCE = 0.95
INTERVALS = "95 % basic bootstrap intervals over images"


def replicates(statistic: Statistic, images: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """`statistic` under `count` resamplings; its argument says how often each image was drawn, int64 [I]."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        drawn = rng.integers(0, images, images)
        rows.append(statistic(np.bincount(drawn, minlength=images)))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def interval(value: float, values: np.ndarray, limits: tuple[float, float] = (0.0, 1.0)) -> list[float] | None:
    """Basic bootstrap interval [low, high] of `value` from its replicates, within `limits`; None without a number.

    The replicates' quantiles are reflected at the value. A doubled image doubles its hits at the same
    scores, so replicates of AP lie above it; percentiles as they are would miss the true AP half of the time.
    """
    values = values[~np.isnan(values)]
    if not len(values) or np.isnan(value):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = 2 * value - np.quantile(values, [1 - tail, tail])
    low, high = np.clip([min(low, value), max(high, value)], *limits)
    return [float(low), float(high)]


def two_sided_p(value: float, values: np.ndarray) -> float | None:
    """p-value of "no difference" for a difference and its replicates: the level at which `interval` meets zero."""
    values = values[~np.isnan(values)]
    if not len(values) or np.isnan(value):
        return None
    smaller = min((values >= 2 * value).mean(), (values <= 2 * value).mean())
    # so many replicates cannot show less than one of them
    return float(min(1.0, max(2 * smaller, 1 / len(values))))
