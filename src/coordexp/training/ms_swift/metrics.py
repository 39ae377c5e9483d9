"""What is logged between two log lines, over every micro-batch and process: exact means, quantiles and totals.

ms-swift's own mean takes the mean of micro-batch means, so a image with two objects would weigh as much as one
with two hundred. Every process must hold the same names, since each one is reduced over all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from swift.metrics import Metric

QUANTILES = {"median": 0.5, "p90": 0.9}


class Ratio(Metric):
    """Sum over count; nothing is logged when nothing was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("parts", default_factory=list)

    def update(self, total: torch.Tensor, count: int) -> None:
        """Add a sum (scalar, which stays on its device until the log line) of `count` values."""
        self.parts.append((total, count))

    def compute(self) -> dict[str, float | None]:
        """The mean over all processes."""
        mine = torch.stack([part for part, _ in self.parts]).sum(dtype=torch.float64).item() if self.parts else 0.0
        total, count = _summed(mine, sum(n for _, n in self.parts))
        return {"mean": total / count if count else None}


class Total(Metric):
    """How many; nothing is logged when there were none."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", default=0)

    def update(self, count: int) -> None:
        """Add `count`."""
        self.count += count

    def compute(self) -> dict[str, int | None]:
        """The sum over all processes."""
        return {"total": int(_summed(self.count)[0]) or None}


class Quantiles(Metric):
    """Median and 90th percentile of every value since the last log line (not of micro-batches)."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("parts", default_factory=list)

    def update(self, values: torch.Tensor) -> None:
        """Add values, [S] float32."""
        self.parts.append(values)

    def compute(self) -> dict[str, float | None]:
        """Quantiles over all processes."""
        mine = torch.cat([part.float().cpu() for part in self.parts]) if self.parts else torch.zeros(0)
        every: list[Any] = [mine]
        if dist.is_initialized():
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, mine)
        values = torch.cat(every).numpy()
        # numpy, because torch.quantile refuses more than 16 million values
        return {name: float(np.quantile(values, q)) if values.size else None for name, q in QUANTILES.items()}


def _summed(*values: float) -> list[float]:
    if not dist.is_initialized():
        return list(values)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, values)
    return [sum(column) for column in zip(*every, strict=True)]
