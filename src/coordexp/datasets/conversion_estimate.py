"""What a conversion will take, measured on a few of its images before it begins."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from coordexp.runtime.estimates import announce

SAMPLE = 16  # images that are measured
LONG = 1000  # images from which on it is worth it


def forecast(total: int, left: int, workers: int, folder: Path, prepare: Callable[[int, str], None]) -> None:
    """Say how many images are `left` of `total`, their bytes and the time; SpaceError when they do not fit.

    `prepare(i, scratch)` makes image i (0-based, of `total`) below the folder `scratch`; a image that is linked
    takes no room. `folder` is where the images will lie, `workers` the processes that will make them.
    """
    if left < LONG:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".forecast.") as scratch:
        began = time.monotonic()
        for n in range(SAMPLE):
            prepare(n * total // SAMPLE, scratch)
        seconds = max(time.monotonic() - began, 1e-9)
        stats = [file.stat() for file in Path(scratch).rglob("*") if file.is_file()]
    size = sum(stat.st_size for stat in stats if stat.st_nlink == 1) / SAMPLE
    rate, basis = workers * SAMPLE / seconds, f"measured on {SAMPLE}, for {workers} processes"
    announce("convert", left, "images", folder=folder, size=left * size, rate=rate, basis=basis)
