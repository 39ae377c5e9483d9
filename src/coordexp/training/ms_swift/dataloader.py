"""Loader processes that leave it to their training process when to end."""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from coordexp.runtime.locks import end_with_parent

_closing = mmap.mmap(-1, 1)  # shared with the processes that are forked from this one


def sigterm_safe_loader(loader: Any) -> Any:
    """`loader`, whose processes go on through SIGTERM, so that the step in which it arrives can be finished and saved.

    SIGTERM reaches all processes of a job: torchrun, Snakemake and SLURM send it to whole groups. It is also how
    Python ends such processes when their parent exits, so from then on they follow it.
    """
    atexit.register(_closing.__setitem__, 0, 1)  # runs before what multiprocessing has registered earlier
    base: DataLoader = getattr(loader, "base_dataloader", loader)
    base.worker_init_fn = functools.partial(_start, base.worker_init_fn)
    return loader


def _start(before: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGTERM, _follow)
    end_with_parent()
    if before is not None:
        before(worker)


def _follow(*_: Any) -> None:
    if _closing[0]:
        os._exit(0)
