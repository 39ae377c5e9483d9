"""Bootstrap over images: images were sampled independently, so images are resampled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], dict[str, float]]
CONFIDENCE = 0.95
INTERVALS = "95% basic bootstrap intervals over images"


def replicates(statistic: Statistic, num_images: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """`count` bootstrap replicates of `statistic`, which takes the number of draws of each image, int64 [I]."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        drawn = rng.integers(0, num_images, num_images)
        rows.append(statistic(np.bincount(drawn, minlength=num_images)))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def interval(value: float, values: np.ndarray, limits: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float] | None:
    """Basic bootstrap interval (low, high) of `value` from its replicates, clipped to `limits`; None if undefined.

    The quantiles of the replicates are reflected at the value (Davison and Hinkley, 1997, section 5.2). An image that
    is drawn twice doubles its true positives at equal scores, so replicates of AP are biased upwards, and a percentile
    interval would miss the true AP about half of the time.
    """
    values = values[~np.isnan(values)]
    if not len(values) or np.isnan(value):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = 2 * value - np.quantile(values, [1 - tail, tail])
    low, high = np.clip([min(low, value), max(high, value)], *limits)
    return float(low), float(high)


def two_sided_p(value: float, values: np.ndarray) -> float | None:
    """p-value of no difference, from a difference and its replicates: the level at which `interval` reaches zero."""
    values = values[~np.isnan(values)]
    if not len(values) or np.isnan(value):
        return None
    smaller = min((values >= 2 * value).mean(), (values <= 2 * value).mean())
    # n replicates cannot show a probability below 1 / n
    return float(min(1.0, max(2 * smaller, 1 / len(values))))
