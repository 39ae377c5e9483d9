"""Merging the adapters of experts into a base checkpoint, however it stores its experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.adapter import Adapter, ExpertLora, lora_scale
from coordexp.modeling.embedding_init import read_rows
from coordexp.modeling.experts import orientation, stored
from coordexp.modeling.families import ExpertNames
from coordexp.runtime.errors import ModelError, located

if TYPE_CHECKING:
    import torch

_TRAINED_BASE = "merge into the checkpoint that training used"


class ExpertUpdate(msgspec.Struct, frozen=True):
    """The update of one tensor of the base by an `ExpertLora`.

    experts: number E of experts of the weight. swapped: the tensor is [E, in, out]. expert: the only one that the
    tensor, [rows, in], contains; None for a stacked tensor. first: its first row within the weight of the expert.
    """

    a: shards.TensorSpec
    b: shards.TensorSpec
    scale: float
    experts: int
    swapped: bool = False
    expert: int | None = None
    first: int = 0


class _Weight(NamedTuple):
    """One stacked weight as the base stores it: (name, expert, first row, shape) of each tensor, and its sizes."""

    tensors: list[tuple[str, int | None, int, tuple[int, ...]]]
    experts: int
    sizes: tuple[int, int]  # the two last dimensions of a stacked tensor; [out, in] if there is one per expert


def expert_updates(base: shards.Checkpoint, adapter: Adapter, names: ExpertNames | None) -> dict[str, ExpertUpdate]:
    """The update of each tensor of the base, by name; ModelError if an expert adapter fits no weight of its module."""
    found: dict[str, ExpertUpdate] = {}
    weights = _weights(base, names) if adapter.experts else {}
    for lora in adapter.experts:
        fitting = [(name, way) for name, weight in weights.items() if (way := _fit(name, weight, lora))]
        if len(fitting) != 1:
            candidates = {n: [w.experts, *w.sizes] for n, w in weights.items() if n.rpartition(".")[0] == lora.module}
            facts = {"expected": candidates, "found": {"A": list(lora.a.shape), "B": list(lora.b.shape)}}
            problem = "the adapter of the experts does not fit a weight of the base"
            raise ModelError(located(problem, file=adapter.file.path, field=lora.module, fix=_TRAINED_BASE, **facts))
        name, way = fitting[0]
        weight = weights[name]
        scale = lora_scale(adapter.settings, name, lora.a.shape[0] // weight.experts)
        for tensor, expert, first, _ in weight.tensors:
            swapped = expert is None and way == "in_out"
            update = ExpertUpdate(lora.a, lora.b, scale, weight.experts, swapped, expert, first)
            if tensor in found:
                raise ModelError(located("two adapters for one weight", file=adapter.file.path, field=tensor))
            found[tensor] = update
    return found


def _weights(base: shards.Checkpoint, names: ExpertNames | None) -> dict[str, _Weight]:
    """The stacked weights of the experts, by their name in memory."""
    parts: dict[str, list[tuple[str, int | None, str, tuple[int, ...]]]] = {}
    for shard in base.shards.values():
        for spec in shard.tensors.values():
            where = stored(spec.name, names)
            weight, module = where.name.rpartition(".")[2], where.name.rpartition(".")[0]
            if names is not None and weight in names.stacked and module.endswith(f".{names.module}"):
                parts.setdefault(where.name, []).append((spec.name, where.expert, where.projection, spec.shape))
    assert names is not None or not parts, "only a family with experts has them"
    return {name: _weight(tensors, names.stacked[name.rpartition(".")[2]]) for name, tensors in parts.items()}


def _weight(tensors: list[tuple[str, int | None, str, tuple[int, ...]]], projections: tuple[str, ...]) -> _Weight:
    if tensors[0][1] is None:
        name, _, _, shape = tensors[0]
        return _Weight([(name, None, 0, shape)], shape[0], (shape[-2], shape[-1]))
    rows = {projection: shape[0] for _, _, projection, shape in tensors}
    first, total = {}, 0
    for projection in projections:
        first[projection] = total
        total += rows.get(projection, 0)
    placed = [(name, expert, first[projection], shape) for name, expert, projection, shape in tensors]
    return _Weight(placed, 1 + max(expert for _, expert, _, _ in tensors), (total, tensors[0][3][1]))


def _fit(name: str, weight: _Weight, lora: ExpertLora) -> str | None:
    """How the weight is oriented if the adapter has its module and sizes."""
    if name.rpartition(".")[0] != lora.module or lora.a.shape[0] % weight.experts:
        return None
    way = orientation((weight.experts, *weight.sizes), lora.b.shape[0], lora.a.shape[1])
    return way if way == "out_in" or weight.tensors[0][1] is None else None


class ExpertFactors:
    """The factors of an `ExpertUpdate` in float32, applied to blocks of rows of the tensor, seen as [rows, columns]."""

    def __init__(self, file: shards.ShardFile, update: ExpertUpdate, shape: tuple[int, ...]) -> None:
        a, b = (read_rows(file, spec, 0, spec.shape[0]).float() for spec in (update.a, update.b))
        self.update, self.height = update, shape[-2]
        self.a = a.view(update.experts, -1, a.shape[1])  # [E, r, in]
        self.b = b.view(b.shape[0], -1, update.experts)  # [out, r, E]

    def apply(self, block: torch.Tensor, begin: int, end: int) -> None:
        """Add the update to `block`, the rows [begin, end) of all experts one after the other, in place."""
        row = begin
        while row < end:
            expert, top = divmod(row, self.height)
            bottom = min(self.height, top + end - row)
            part = block[row - begin : row - begin + bottom - top]
            chosen = self.update.expert if self.update.expert is not None else expert
            a, b = self.a[chosen], self.b[:, :, chosen]
            top_row, bottom_row = top + self.update.first, bottom + self.update.first
            left, right = (a[:, top:bottom].T, b.T) if self.update.swapped else (b[top_row:bottom_row], a)
            part.addmm_(left, right, alpha=self.update.scale)
            row += bottom - top
