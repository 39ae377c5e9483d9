"""Logged values between two log lines, over all micro-batches and processes: exact means, quantiles and totals.

ms-swift averages the means of micro-batches, so an image with two objects would weigh as much as one with two hundred.
Every process must log the same names, since each value is reduced over all processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from swift.metrics import Metric

QUANTILES = {"median": 0.5, "p90": 0.9}


class Mean(Metric):
    """Sum divided by count; not logged if the count is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("parts", default_factory=list)

    def update(self, total: torch.Tensor, count: int) -> None:
        """Add the sum of `count` values: a scalar tensor, which stays on its device until the log line."""
        self.parts.append((total, count))

    def compute(self) -> dict[str, float | None]:
        """The mean over all processes."""
        local = torch.stack([part for part, _ in self.parts]).sum(dtype=torch.float64).item() if self.parts else 0.0
        total, count = _sum_over_processes(local, sum(n for _, n in self.parts))
        return {"mean": total / count if count else None}


class Total(Metric):
    """A count; not logged if it is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", default=0)

    def update(self, count: int) -> None:
        """Add `count`."""
        self.count += count

    def compute(self) -> dict[str, int | None]:
        """The sum over all processes."""
        return {"total": int(_sum_over_processes(self.count)[0]) or None}


class Quantiles(Metric):
    """Median and 90th percentile of all values since the last log line (not of micro-batch means)."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("parts", default_factory=list)

    def update(self, values: torch.Tensor) -> None:
        """Add values, [S] float32."""
        self.parts.append(values)

    def compute(self) -> dict[str, float | None]:
        """Quantiles over all processes."""
        local = torch.cat([part.float().cpu() for part in self.parts]) if self.parts else torch.zeros(0)
        gathered: list[Any] = [local]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, local)
        values = torch.cat(gathered).numpy()
        # numpy, because torch.quantile refuses more than 16 million values
        return {name: float(np.quantile(values, q)) if values.size else None for name, q in QUANTILES.items()}


def _sum_over_processes(*values: float) -> list[float]:
    if not dist.is_initialized():
        return list(values)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return [sum(column) for column in zip(*gathered, strict=True)]
