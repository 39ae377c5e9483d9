"""How checkpoints store the experts of a mixture of experts: stacked as in memory, stacked with swapped dimensions,
or one tensor per expert and projection.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from coordexp.modeling.families import ExpertNames

Shape = tuple[int, ...]


class Stored(NamedTuple):
    """Where a tensor of a checkpoint lies in the stacked tensor [experts, out, in] that has `name` in memory.

    expert: the only expert in it; None for all. projection: the only projection in it; "" for all.
    """

    name: str
    expert: int | None = None
    projection: str = ""


def stored(tensor: str, names: ExpertNames | None) -> Stored:
    """What a tensor of a checkpoint contains; a tensor that belongs to no expert has the same name in memory."""
    if names is None:
        return Stored(tensor)
    match = re.fullmatch(rf"(.+\.{re.escape(names.module)}\.)(\d+)\.(\w+)\.weight", tensor)
    if match is None:
        return Stored(tensor)
    stacked = next((name for name, parts in names.stacked.items() if match[3] in parts), None)
    return Stored(tensor) if stacked is None else Stored(match[1] + stacked, int(match[2]), match[3])


def is_expert_weight(name: str, names: ExpertNames | None) -> bool:
    """Whether a tensor in memory holds the weights of all experts of a layer."""
    if names is None:
        return False
    module, _, weight = name.rpartition(".")
    return weight in names.stacked and module.endswith(f".{names.module}")


def orientation(shape: Shape, out_features: int, in_features: int) -> Literal["out_in", "in_out"] | None:
    """How the two last dimensions of a stacked tensor are ordered; None if it has other sizes.

    Like transformers, a tensor that fits both ways is read as [experts, out, in].
    """
    if shape[-2:] == (out_features, in_features):
        return "out_in"
    return "in_out" if shape[-2:] == (in_features, out_features) else None


def in_memory(shapes: dict[str, Shape], expected: dict[str, Shape], names: ExpertNames | None) -> dict[str, Shape]:
    """`shapes` of a checkpoint by the names and shapes in memory, wherever its experts are complete.

    A group of expert tensors that does not form the stacked tensor in `expected` keeps its names and shapes.
    """
    groups: dict[str, dict[tuple[int | None, str], tuple[str, Shape]]] = {}
    for tensor, shape in shapes.items():
        where = stored(tensor, names)
        groups.setdefault(where.name, {})[where.expert, where.projection] = (tensor, shape)
    found: dict[str, Shape] = {}
    for name, parts in groups.items():
        shape = _stacked_shape({key: shape for key, (_, shape) in parts.items()}, name, names)
        want = expected.get(name)
        if shape is not None and want and len(want) == 3 and is_expert_weight(name, names):
            shape = want if shape[:1] == want[:1] and orientation(shape, *want[1:]) else shape
        found |= {name: shape} if shape is not None else dict(parts.values())
    return found


def _stacked_shape(parts: dict[tuple[int | None, str], Shape], name: str, names: ExpertNames | None) -> Shape | None:
    """The shape of the stacked tensor, or None if expert tensors are missing or differ."""
    if (None, "") in parts:
        return parts[None, ""] if len(parts) == 1 else None
    assert names is not None, "only experts have parts"
    projections = names.stacked[name.rpartition(".")[2]]
    count = 1 + max(expert for expert, _ in parts if expert is not None)
    if set(parts) != {(expert, projection) for expert in range(count) for projection in projections}:
        return None
    sizes = {projection: {parts[expert, projection] for expert in range(count)} for projection in projections}
    if any(len(shapes) != 1 or len(next(iter(shapes))) != 2 for shapes in sizes.values()):
        return None
    rows = [next(iter(sizes[projection])) for projection in projections]
    return (count, sum(shape[0] for shape in rows), rows[0][1])
