"""Results as lines of JSON, and what every measurement needs to know."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """Folders and size of a run of the benchmark; `tokenizer` is None for a toy run."""

    out: Path
    work: Path
    tokenizer: Path | None
    shape: str
    toy: bool

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"

    @property
    def model(self) -> Path:
        return self.work / "model"

    @property
    def rows(self) -> Path:
        return self.out / "rows.jsonl"

    def arguments(self) -> list[str]:
        """The command-line options that describe this run."""
        given = ["--out", str(self.out), "--work", str(self.work), "--shape", self.shape]
        return given + (["--toy"] if self.toy else ["--tokenizer", str(self.tokenizer)])


def write_row(run: Run, **row: Any) -> None:
    """Append a result and print it."""
    line = json.dumps(row)
    print(line, flush=True)
    with run.rows.open("a") as handle:
        handle.write(line + "\n")


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """Wall time of `call`, including the work that it leaves on the GPU."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_gb(device: str) -> float | None:
    """Largest memory that tensors have occupied on the GPU since the last reset, in GB; None on a CPU."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device == "cuda" else None


def reset_peak(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
