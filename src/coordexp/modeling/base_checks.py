"""Which checkpoints can be bases: weights in floating point, complete, finite, and those that config.json describes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.checkpoint_safety import library_errors
from coordexp.modeling.experts import in_memory
from coordexp.modeling.families import EmbeddingTensors, ModelFamily
from coordexp.runtime.errors import ModelError, located

# Of each type of weights, the unsigned integer of its size and the bits of its exponent.
EXPONENTS = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
FLOATS = tuple(EXPONENTS)
Table = tuple[shards.ShardFile, shards.TensorSpec]

_BLOCK_BYTES = 16 << 20
_UNQUANTISED = "use the checkpoint in bfloat16 or float32 that it was made from"
_COMPLETE = "fetch the checkpoint again, or use another one"


def embedding_tensors(checkpoint: shards.Checkpoint, family: ModelFamily, config: dict[str, Any]) -> EmbeddingTensors:
    """The embedding tensors; not tied if the output layer has other values than the embedding, whatever config says.

    PEFT leaves such checkpoints when it merges a trained output layer: transformers would ignore its weights.
    """
    names = family.embeddings(config)
    embedding, head = checkpoint.find(names.embedding), checkpoint.find(names.head)
    tied = names.tied and (head is None or embedding is None or _same_values(embedding, head))
    return EmbeddingTensors(names.embedding, names.head, tied)


def embedding_tables(checkpoint: shards.Checkpoint, names: EmbeddingTensors) -> dict[str, Table]:
    """The embedding table and, where the checkpoint has one, the output layer's, by name; ModelError if unusable."""
    if checkpoint.find(names.embedding) is None:
        problem = "the checkpoint has no embedding table"
        raise ModelError(located(problem, file=checkpoint.folder, expected=names.embedding, fix=_COMPLETE))
    if not names.tied and checkpoint.find(names.head) is None:
        problem = "the checkpoint has no output layer, although config.json says that it is not tied to the embedding"
        fix = f"{_COMPLETE}; or set tie_word_embeddings: true if the two are one table"
        raise ModelError(located(problem, file=checkpoint.folder, expected=names.head, fix=fix))
    tables = {name: checkpoint.find(name) for name in (names.embedding, names.head)}
    found = {name: source for name, source in tables.items() if source is not None}
    for name, (shard, spec) in found.items():
        if len(spec.shape) != 2 or not spec.nbytes:
            problem = "not a table of embeddings, or an empty one"
            facts = {"expected": "[vocabulary, hidden]", "found": list(spec.shape), "fix": _COMPLETE}
            raise ModelError(located(problem, file=shard.path, field=name, **facts))
    if len({spec.shape for _, spec in found.values()}) != 1:
        problem = "the embedding table and the output layer have different numbers of rows or columns"
        raise ModelError(located(problem, file=checkpoint.folder, found=[list(s.shape) for _, s in found.values()]))
    return found


def check_base(checkpoint: shards.Checkpoint, family: ModelFamily, config: dict[str, Any]) -> None:
    """ModelError, which names the tensor or field, for a checkpoint whose vocabulary cannot be expanded."""
    _check_not_quantised(checkpoint, config)
    _check_names(checkpoint, family, config)
    tables = embedding_tables(checkpoint, embedding_tensors(checkpoint, family, config))
    _check_finite(checkpoint, tables)
    _check_not_zero(tables)


def _check_not_quantised(checkpoint: shards.Checkpoint, config: dict[str, Any]) -> None:
    for section, content in (("", config), *((f"{k}.", v) for k, v in config.items() if isinstance(v, dict))):
        if content.get("quantization_config"):
            facts = {"field": f"{section}quantization_config", "fix": _UNQUANTISED}
            problem = "quantised weights cannot be expanded, trained and merged"
            raise ModelError(located(problem, file=checkpoint.folder / "config.json", **facts))
    for shard in checkpoint.shards.values():
        for spec in shard.tensors.values():
            if spec.dtype not in FLOATS:
                problem = "weights of this type cannot be expanded, trained and merged"
                facts = {"expected": FLOATS, "found": spec.dtype, "fix": _UNQUANTISED}
                raise ModelError(located(problem, file=shard.path, field=spec.name, **facts))


def _check_names(checkpoint: shards.Checkpoint, family: ModelFamily, config: dict[str, Any]) -> None:
    """ModelError unless the tensors are those of the model that config.json describes, if the family knows them."""
    with library_errors("build the model of this configuration", checkpoint.folder / "config.json"):
        expected = family.tensor_shapes(config)
    if expected is None:
        return
    specs = {spec.name: spec.shape for shard in checkpoint.shards.values() for spec in shard.tensors.values()}
    specs = {name: shape for name, shape in specs.items() if not name.startswith(family.unused_tensors)}
    specs = in_memory(specs, expected, family.experts)
    optional = {family.embeddings(config).head} if family.is_tied(config) else set()
    for problem, names in (
        ("tensors that config.json requires are missing", expected.keys() - specs.keys() - optional),
        ("tensors do not belong to the model that config.json describes", specs.keys() - expected.keys()),
    ):
        if names:
            first = min(names, key=_natural)
            message = f"{len(names)} {problem}, the first is {first}"
            raise ModelError(located(message, file=checkpoint.folder, fix=_COMPLETE))
    tables = {family.embeddings(config).embedding, family.embeddings(config).head}  # whose rows are checked later
    for name in sorted(specs.keys() & expected.keys() - tables, key=_natural):
        if specs[name] != expected[name]:
            facts = {"expected": list(expected[name]), "found": list(specs[name]), "fix": _COMPLETE}
            problem = "shape differs from the model that config.json describes"
            raise ModelError(located(problem, file=checkpoint.folder, field=name, **facts))


def _check_finite(checkpoint: shards.Checkpoint, tables: dict[str, Table]) -> None:
    """ModelError for NaN or infinity in any tensor; reads the whole checkpoint, several tensors at once."""
    tensors = [(shard, spec) for shard in checkpoint.shards.values() for spec in shard.tensors.values() if spec.nbytes]
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as threads:
        rows = threads.map(_non_finite_row, tensors)
        found = [(shard, spec, row) for (shard, spec), row in zip(tensors, rows, strict=True) if row is not None]
    for shard, spec, row in sorted(found, key=lambda item: _natural(item[1].name))[:1]:
        more = ", which would spread to the new rows" if spec.name in tables else ""
        problem = f"row {row} contains NaN or infinity{more}"
        raise ModelError(located(problem, file=shard.path, field=spec.name, fix=_COMPLETE))


def _check_not_zero(tables: dict[str, Table]) -> None:
    for name, (shard, spec) in tables.items():
        if not any(any(block) for _, block in _blocks((shard, spec))):
            problem = "the table contains only zeros"
            raise ModelError(located(problem, file=shard.path, field=name, fix=_COMPLETE))


def _non_finite_row(table: Table) -> int | None:
    """The first row of a tensor with NaN or infinity, whose exponents have all bits set."""
    spec = table[1]
    kind, exponent = EXPONENTS[spec.dtype]
    width = spec.nbytes // spec.shape[0] if spec.shape else spec.nbytes
    for begin, block in _blocks(table):
        marked = np.frombuffer(block, dtype=kind) & kind(exponent) == kind(exponent)
        if marked.any():
            return (begin + int(marked.argmax()) * kind().itemsize) // width
    return None


def _same_values(one: Table, other: Table) -> bool:
    if (one[1].dtype, one[1].shape) != (other[1].dtype, other[1].shape):
        return False
    return all(a == b for (_, a), (_, b) in zip(_blocks(one), _blocks(other), strict=True))


def _blocks(table: Table) -> Iterator[tuple[int, bytearray]]:
    """(first byte, bytes) of whole rows of a table."""
    shard, spec = table
    width = spec.nbytes // spec.shape[0] if spec.shape and spec.shape[0] else 1
    step = max(1, _BLOCK_BYTES // max(1, width)) * max(1, width)
    for begin in range(0, spec.nbytes, step):
        yield begin, shards.read_bytes(shard, spec, begin, min(begin + step, spec.nbytes))


def _natural(name: str) -> list[Any]:
    """Sort key by which layer 2 precedes layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
