"""Small images of random colours for the benchmarks of inference."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 128


def images(count: int) -> list[Image.Image]:
    """`count` different images; the same ones in every call."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(array).resize((SIDE, SIDE), Image.Resampling.NEAREST) for array in small]
