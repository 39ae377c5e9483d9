"""The codec between pixels, [0, 1] and the 1,000 coordinate bins.

`norm1000`:        k = clamp(round(c * 999), 0, 999), back c = k / 999, with c = x / size.
`norm1000_legacy`: floor for x1, y1 and ceil for x2, y2 of x / (size - 1) * 999, polygons rounded;
                   only for checkpoints that were trained with it.

Halves are rounded up, so the codec does not depend on the parity of the bin. 1000 is never emitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from coordexp.records import COORD_BINS

LAST_BIN = COORD_BINS - 1
EmitNorm = Literal["norm1000", "norm1000_legacy"]


def encode(norm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Bins (int64, 0..999) of coordinates in [0, 1]; values outside are clamped."""
    return np.clip(np.floor(np.asarray(norm, dtype=np.float64) * LAST_BIN + 0.5), 0, LAST_BIN).astype(np.int64)


def decode(bins: Sequence[float] | np.ndarray) -> np.ndarray:
    """Coordinates in [0, 1] (float64) of bins, which may be fractional."""
    return np.asarray(bins, dtype=np.float64) / LAST_BIN


def encode_box(
    norm_box: Sequence[float], emit_norm: EmitNorm = "norm1000", size: tuple[int, int] = (0, 0)
) -> list[int]:
    """Bins of a box [x1, y1, x2, y2] in [0, 1]; at least one bin wide and high.

    `size` is (width, height) in pixels; only the legacy codec needs it.
    """
    if emit_norm == "norm1000":
        bins = encode(norm_box)
    else:
        scaled = _legacy_scale(norm_box, size)
        bins = np.clip(np.concatenate([np.floor(scaled[:2]), np.ceil(scaled[2:])]), 0, LAST_BIN).astype(np.int64)
    x1, y1, x2, y2 = (int(k) for k in bins)
    (x1, x2), (y1, y2) = _widen(x1, x2), _widen(y1, y2)
    return [x1, y1, x2, y2]


def encode_poly(
    norm_poly: Sequence[float], emit_norm: EmitNorm = "norm1000", size: tuple[int, int] = (0, 0)
) -> list[int]:
    """Bins of a flat polygon [x, y, ...] in [0, 1]; `size` as in `encode_box`."""
    if emit_norm == "norm1000":
        return encode(norm_poly).tolist()
    return np.clip(np.floor(_legacy_scale(norm_poly, size) + 0.5), 0, LAST_BIN).astype(np.int64).tolist()


def legacy_targets(norm: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Training targets of the legacy codec for flat coordinates [x, y, ...] in [0, 1]: its unrounded bins, over 999.

    With `norm1000` the targets are the coordinates themselves.
    """
    return np.clip(_legacy_scale(norm, size) / LAST_BIN, 0, 1).tolist()


def _legacy_scale(norm: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    if min(size) < 2:
        raise ValueError(f"norm1000_legacy needs an image of at least 2x2 pixels, found {size}")
    points = np.asarray(norm, dtype=np.float64).reshape(-1, 2) * size
    return (points / (np.asarray(size) - 1) * LAST_BIN).ravel()


def _widen(low: int, high: int) -> tuple[int, int]:
    if high > low:
        return low, high
    return (low, low + 1) if low < LAST_BIN else (LAST_BIN - 1, LAST_BIN)
