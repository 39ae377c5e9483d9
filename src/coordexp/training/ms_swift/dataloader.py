"""Loader workers that survive SIGTERM and end with their training process."""

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

_closing = mmap.mmap(-1, 1)  # shared with the workers, which are forked from this process


def sigterm_safe_loader(loader: Any) -> Any:
    """`loader`, with workers that survive SIGTERM, so that the current step can be finished and saved.

    Snakemake, SLURM and torchrun send SIGTERM to all processes of a job. Python also uses it to end workers when
    their parent exits, so workers obey it from then on.
    """
    atexit.register(_closing.__setitem__, 0, 1)  # runs before what multiprocessing has registered earlier
    base: DataLoader = getattr(loader, "base_dataloader", loader)
    base.worker_init_fn = functools.partial(_init_worker, base.worker_init_fn)
    return loader


def _init_worker(before: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGTERM, _on_sigterm)
    end_with_parent()
    if before is not None:
        before(worker)


def _on_sigterm(*_: Any) -> None:
    if _closing[0]:
        os._exit(0)
