"""Deterministic initialisation of the embedding rows of the 1,001 new tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from coordexp.modeling import safetensors_io as shards
from coordexp.records import COORD_BINS

if TYPE_CHECKING:
    import torch

Init = Literal["mean", "numeric"]

BLOCK_ROWS = 512  # rows that are summed at once in float32: the rounding of the mean depends on it

_DIGIT_WEIGHTS = (1.0, 0.5, 0.25)  # hundreds, tens, ones: close numbers get close rows
_FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the sinusoids, in periods per 1,000 bins
_SEED = 20


def new_rows(
    shard: shards.ShardFile, spec: shards.TensorSpec, known: int, digits: list[int], init: Init
) -> torch.Tensor:
    """Rows for `<|coord_*|>` and the 1,000 coordinates, [1001, hidden] float32, from the first `known` rows of a table.

    `mean`: every row is the mean of the known rows. `numeric`: the mean plus a deviation, the sum of the digits' rows
    (`digits`: ids of "0".."9"; leading digits have more weight) and of sinusoids of the coordinate, scaled to the
    standard deviation of the table. The row of the wildcard is the mean of the coordinate rows in both cases. From
    random weights on generated shapes, `numeric` learned boxes faster (benchmarks/model_init.py).
    """
    import torch

    mean, spread = table_statistics(shard, spec, known)
    if init == "mean":
        return mean.float().repeat(1 + COORD_BINS, 1)
    digit_rows = torch.stack([read_rows(shard, spec, i, i + 1)[0] for i in digits]).double() - mean
    deviation = _unit(_digit_part(digit_rows)) + _unit(_smooth_part(mean.shape[0]))
    coords = mean + deviation * (spread / deviation.pow(2).mean(1, keepdim=True).sqrt())
    return torch.cat([coords.mean(0, keepdim=True), coords]).float()


def table_statistics(shard: shards.ShardFile, spec: shards.TensorSpec, known: int) -> tuple[torch.Tensor, float]:
    """Mean row [hidden] float64 of the first `known` rows, and the standard deviation of all elements."""
    import torch

    hidden, width = spec.shape[1], spec.nbytes // spec.shape[0]
    raw = torch.empty(BLOCK_ROWS, hidden, dtype=torch_dtype(spec.dtype))
    view = memoryview(raw.view(torch.uint8).numpy()).cast("B")
    block = torch.empty(BLOCK_ROWS, hidden)
    total, squares = torch.zeros(hidden, dtype=torch.float64), 0.0
    for begin in range(0, known, BLOCK_ROWS):
        count = min(BLOCK_ROWS, known - begin)
        shards.read_into(shard, spec, begin * width, view[: count * width])
        flat = block[:count].copy_(raw[:count]).view(-1)
        total += block[:count].sum(0)
        squares += float(torch.dot(flat, flat))
    mean = total / known
    variance = squares / (known * hidden) - float(mean.pow(2).mean())
    return mean, math.sqrt(max(0.0, variance))


@contextlib.contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Run torch with one thread per call: our own threads run in parallel, and sums do not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_rows(shard: shards.ShardFile, spec: shards.TensorSpec, begin: int, end: int) -> torch.Tensor:
    """Rows [begin, end) of a tensor in its own dtype."""
    import torch

    width = spec.nbytes // spec.shape[0]
    data = shards.read_bytes(shard, spec, begin * width, end * width)
    return torch.frombuffer(data, dtype=torch_dtype(spec.dtype)).view(end - begin, *spec.shape[1:])


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a floating-point safetensors dtype name."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]


def to_bytes(tensor: torch.Tensor, dtype: str) -> memoryview:
    """The little-endian bytes of a tensor, converted to the safetensors dtype `dtype`."""
    import torch

    flat = tensor.to(torch_dtype(dtype)).contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _digit_part(digit_rows: torch.Tensor) -> torch.Tensor:
    import torch

    bins = torch.arange(COORD_BINS)
    digits = (bins // 100, bins // 10 % 10, bins % 10)
    return sum(weight * digit_rows[digit] for weight, digit in zip(_DIGIT_WEIGHTS, digits, strict=True))


def _smooth_part(hidden: int) -> torch.Tensor:
    import torch

    # The stream of RandomState, hence these rows, is the same in every version of numpy.
    directions = torch.from_numpy(np.random.RandomState(_SEED).standard_normal((2 * len(_FREQUENCIES), hidden)))
    angle = 2 * np.pi * torch.arange(COORD_BINS, dtype=torch.float64)[:, None] / COORD_BINS
    angle = angle * torch.tensor(_FREQUENCIES, dtype=torch.float64)
    amplitude = torch.tensor(_FREQUENCIES, dtype=torch.float64).rsqrt()
    waves = torch.cat([angle.cos() * amplitude, angle.sin() * amplitude], dim=1)
    return waves @ directions


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.pow(2).mean().sqrt().clamp(min=1e-30)
