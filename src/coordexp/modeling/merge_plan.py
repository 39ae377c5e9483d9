"""The arithmetic of merging: which tensor becomes what, and writing it shard by shard in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from coordexp.modeling import safetensors_io as shards
from coordexp.modeling import vocab
from coordexp.modeling.adapter import Adapter, Lora, Offsets
from coordexp.modeling.embedding_init import one_thread_each, read_rows, to_bytes, torch_dtype
from coordexp.modeling.parallel_writer import Output, room
from coordexp.runtime import tuning
from coordexp.runtime.errors import ModelError, located

if TYPE_CHECKING:
    import torch


class TensorUpdate(msgspec.Struct, frozen=True):
    """How one output tensor comes about: `source` (or `replaced`) plus `lora`, or `source` plus offset rows."""

    name: str
    source: tuple[shards.ShardFile, shards.TensorSpec]
    dtype: str
    replaced: shards.TensorSpec | None = None
    lora: Lora | None = None
    offset: shards.TensorSpec | None = None

    @property
    def plain(self) -> bool:
        """True when the tensor stays as it is."""
        return (
            self.replaced is None and self.lora is None and self.offset is None and self.dtype == self.source[1].dtype
        )

    @property
    def recipe(self) -> tuple:
        """What is done to the source, to compare two tensors that share one."""
        return (self.replaced, self.lora, self.offset)


class Plan(msgspec.Struct, frozen=True):
    """Every output file with its tensors in order."""

    kind: Literal["adapter", "full"]
    files: dict[str, list[TensorUpdate]]
    metadata: dict[str, dict[str, str]]
    index_metadata: dict | None
    trained_files: list[shards.ShardFile]
    adapter: Adapter | None
    offsets: Offsets | None
    untied: bool
    applied: dict


def plan_adapter(base: shards.Checkpoint, adapter: Adapter, tied: bool) -> Plan:
    """What an adapter makes of each base tensor; ModelError when it does not fit this base."""
    embed = _embedding_name(base)
    own_head = not tied and base.find(vocab.HEAD_NAME) is not None
    names = set(base.names()) | ({vocab.HEAD_NAME} if tied else set())
    for name in [*adapter.lora, *adapter.replaced]:
        if name not in names:
            fix = "merge LoRA, DoRA, modules_to_save or coordinate offsets into the checkpoint that was trained"
            raise ModelError(
                located("the adapter changes a tensor that the base lacks", file=base.folder, field=name, fix=fix)
            )
    _check_offsets(base, adapter, embed, own_head)
    files: dict[str, list[TensorUpdate]] = {}
    untied = False
    for file_name, shard in base.shards.items():
        files[file_name] = []
        for spec in shard.tensors.values():
            if tied and spec.name == vocab.HEAD_NAME:
                continue  # a second copy of the tied table: made again below if it must differ
            files[file_name].append(_change(adapter, spec.name, (shard, spec), embed))
            if tied and spec.name == embed:
                head = _change(adapter, vocab.HEAD_NAME, (shard, spec), embed)
                if head.recipe != files[file_name][-1].recipe:
                    files[file_name].append(head)
                    untied = True
    for change in (c for changes in files.values() for c in changes):
        _check_shapes(adapter, change)
    return Plan(
        kind="adapter",
        files=files,
        metadata={name: shard.metadata for name, shard in base.shards.items()},
        index_metadata=base.index_metadata,
        trained_files=[adapter.file],
        adapter=adapter,
        offsets=adapter.offsets,
        untied=untied,
        applied={
            "lora": sum(update.magnitude is None for update in adapter.lora.values()),
            "dora": sum(update.magnitude is not None for update in adapter.lora.values()),
            "replaced": len(adapter.replaced),
            "offset_tables": 0 if adapter.offsets is None else 1 + (adapter.offsets.head is not None),
        },
    )


def plan_full(base: shards.Checkpoint, trained: shards.Checkpoint, tied: bool) -> Plan:
    """Full-parameter weights in the base's dtype; ModelError when names or shapes are not the base's."""
    free = {vocab.HEAD_NAME} if tied else set()
    shapes = {spec.name: spec for shard in base.shards.values() for spec in shard.tensors.values()}
    found = {spec.name: spec for shard in trained.shards.values() for spec in shard.tensors.values()}
    different = sorted((shapes.keys() ^ found.keys()) - free)
    different += sorted(n for n in shapes.keys() & found.keys() if shapes[n].shape != found[n].shape)
    if different:
        fix = "merge with the base that was trained"
        problem = f"{len(different)} tensors are not those of the base, the first is {different[0]}"
        raise ModelError(located(problem, file=trained.folder, fix=fix))
    files = {
        name: [
            TensorUpdate(spec.name, (shard, spec), shapes[spec.name].dtype if spec.name in shapes else spec.dtype)
            for spec in shard.tensors.values()
        ]
        for name, shard in trained.shards.items()
    }
    return Plan(
        kind="full",
        files=files,
        metadata={name: shard.metadata for name, shard in trained.shards.items()},
        index_metadata=trained.index_metadata,
        trained_files=list(trained.shards.values()),
        adapter=None,
        offsets=None,
        untied=False,
        applied={"full": len(found)},
    )


def write(plan: Plan, folder: Path) -> dict[str, str]:
    """Write every file of a plan; returns how each came about: `rewritten`, `link` or `copy`."""
    with shards.workers() as pool, one_thread_each():
        return _write(plan, folder, pool)


def _write(plan: Plan, folder: Path, pool: shards.Workers) -> dict[str, str]:
    how, weight_map, total = {}, {}, 0
    for file_name, changes in plan.files.items():
        source = untouched(file_name, changes)
        if source is not None:
            how[file_name] = shards.link_or_copy(source, folder / file_name)
        else:
            shards.write_file(folder / file_name, [_entry(plan, c) for c in changes], plan.metadata[file_name], pool)
            how[file_name] = "rewritten"
        weight_map |= {change.name: file_name for change in changes}
        total += size(changes)
    if plan.index_metadata is not None:
        shards.write_index(folder, weight_map, total, plan.index_metadata)
    return how


def untouched(file_name: str, changes: list[TensorUpdate]) -> Path | None:
    """The input file that an output file equals, or None."""
    shard = changes[0].source[0] if changes else None
    if shard is None or shard.path.name != file_name or len(changes) != len(shard.tensors):
        return None
    return shard.path if all(c.plain and c.source[0] is shard for c in changes) else None


def size(changes: list[TensorUpdate]) -> int:
    """Bytes of the tensors of an output file."""
    return sum(shards.nbytes(c.dtype, c.source[1].shape) for c in changes)


def _embedding_name(base: shards.Checkpoint) -> str:
    names = [name for name in base.names() if name.endswith(vocab.EMBED_SUFFIX)]
    if len(names) != 1:
        problem = f"expected one tensor named *{vocab.EMBED_SUFFIX}"
        raise ModelError(located(problem, file=base.folder, found=names, fix="is this a Qwen3-VL checkpoint?"))
    return names[0]


def _change(
    adapter: Adapter, name: str, source: tuple[shards.ShardFile, shards.TensorSpec], embed: str
) -> TensorUpdate:
    offset = None
    if adapter.offsets is not None and name in (embed, vocab.HEAD_NAME):
        own = adapter.offsets.head if name == vocab.HEAD_NAME else adapter.offsets.embed
        offset = own if own is not None else adapter.offsets.embed
    return TensorUpdate(name, source, source[1].dtype, adapter.replaced.get(name), adapter.lora.get(name), offset)


def _check_offsets(base: shards.Checkpoint, adapter: Adapter, embed: str, own_head: bool) -> None:
    if adapter.offsets is None:
        return
    if own_head and adapter.offsets.head is None:
        problem = "the adapter was trained with tied embeddings, this base has a head of its own"
        raise ModelError(located(problem, file=base.folder, fix="merge into the checkpoint that was trained"))
    hidden, expected = adapter.offsets.embed.shape[1], base.find(embed)[1].shape
    if hidden != expected[1] or adapter.offsets.end >= expected[0]:
        found = (adapter.offsets.end, hidden)
        raise ModelError(
            located("offsets do not fit the embedding table", file=base.folder, expected=expected, found=found)
        )


def _check_shapes(adapter: Adapter, change: TensorUpdate) -> None:
    shape = change.source[1].shape
    if change.offset is not None and (change.lora is not None or change.replaced is not None):
        problem = "the adapter has coordinate offsets and trains the whole embedding as well"
        raise ModelError(located(problem, file=adapter.file.path, field=change.name))
    if change.replaced is not None and change.replaced.shape != shape:
        _misfit(adapter, change.name, shape, change.replaced.shape)
    if change.lora is not None:
        a, b = change.lora.a.shape, change.lora.b.shape
        found = (a[1], b[0]) if change.lora.embedding else (b[0], a[1])
        if found != shape:
            _misfit(adapter, change.name, shape, found)


def _misfit(adapter: Adapter, name: str, expected: tuple, found: tuple) -> None:
    fix = "merge into the checkpoint that was trained"
    raise ModelError(
        located(
            "shape differs from the base's", file=adapter.file.path, field=name, expected=expected, found=found, fix=fix
        )
    )


def _entry(plan: Plan, change: TensorUpdate) -> shards.Entry:
    shard, spec = change.source
    if change.plain:
        return shards.Entry(change.name, spec.dtype, spec.shape, shards.copied(shard, spec).jobs)
    jobs = _offset_jobs if change.offset is not None else _block_jobs
    return shards.Entry(change.name, change.dtype, spec.shape, partial(jobs, plan, change))


def _offset_jobs(plan: Plan, change: TensorUpdate) -> Iterator[shards.Job]:
    """The table as it is, but for the coordinate rows: these are added in float32 and rounded once."""
    shard, spec = change.source
    start, stop = plan.offsets.start, plan.offsets.end + 1
    width = spec.nbytes // spec.shape[0]

    def patch(out: Output, position: int) -> None:
        table = read_rows(plan.adapter.file, change.offset, 0, stop - start).float()
        patched = read_rows(shard, spec, start, stop).float() + table
        out.write(position, to_bytes(patched, change.dtype))

    yield from shards.copy_jobs(shard, spec, 0, start * width)
    yield shards.Job((stop - start) * width, patch)
    yield from shards.copy_jobs(shard, spec, stop * width, spec.nbytes)


def _block_jobs(plan: Plan, change: TensorUpdate) -> Iterator[shards.Job]:
    """Blocks of rows of a changed tensor."""
    source = change.source if change.replaced is None else (plan.adapter.file, change.replaced)
    shape = source[1].shape
    rows, columns = (shape[0] if shape else 1), max(1, math.prod(shape[1:]))
    step = max(1, tuning.VALUES_PER_BLOCK // columns)
    spans = [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
    factors = None if change.lora is None else _Factors(plan.adapter.file, change.lora)
    if factors is not None and factors.magnitude is not None and factors.by_column:
        for begin, end in spans:
            factors.count_column_norms(_floats(source, columns, begin, end), begin, end)

    def run(begin: int, end: int, out: Output, position: int) -> None:
        block = _floats(source, columns, begin, end)
        if factors is not None:
            factors.apply(block, begin, end)
        out.write(position, _bytes_of(block, change.dtype, position))

    width = columns * shards.ITEM_BYTES[change.dtype]
    for begin, end in spans:
        yield shards.Job((end - begin) * width, partial(run, begin, end))


def _floats(source: tuple[shards.ShardFile, shards.TensorSpec], columns: int, begin: int, end: int) -> torch.Tensor:
    """Rows [begin, end) of a tensor as float32 [end - begin, columns]; valid until the thread's next block."""
    import torch

    shard, spec = source
    width = columns * shards.ITEM_BYTES[spec.dtype]
    raw = room("raw", (end - begin) * width)
    shards.read_into(shard, spec, begin * width, raw)
    floats = torch.frombuffer(room("floats", (end - begin) * columns * 4), dtype=torch.float32)
    return floats.copy_(torch.frombuffer(raw, dtype=torch_dtype(spec.dtype))).view(end - begin, columns)


def _bytes_of(block: torch.Tensor, dtype: str, position: int) -> memoryview:
    """The bytes of a float32 block in a safetensors dtype, to be written at `position`."""
    import torch

    view = room("rounded", block.numel() * shards.ITEM_BYTES[dtype], position)
    torch.frombuffer(view, dtype=torch_dtype(dtype)).copy_(block.reshape(-1))
    return view


class _Factors:
    """The two factors of a LoRA update in float32, applied to blocks of rows.

    DoRA rescales a linear weight row by row, an embedding column by column: the latter needs the norms beforehand.
    """

    def __init__(self, file: shards.ShardFile, lora: Lora) -> None:
        a, b = (read_rows(file, spec, 0, spec.shape[0]).float() for spec in (lora.a, lora.b))
        self.left, self.right = (a.T, b.T) if lora.embedding else (b, a)  # update = scale * left @ right
        self.scale = lora.scale
        spec = lora.magnitude
        self.magnitude = None if spec is None else read_rows(file, spec, 0, spec.shape[0]).float()
        self.by_column = lora.embedding
        self.column_squares: torch.Tensor | float = 0.0

    def apply(self, block: torch.Tensor, begin: int, end: int) -> None:
        """Adds the update to `block` (rows begin..end of the weight) in place; for DoRA rescales to the magnitude."""
        import torch

        block.addmm_(self.left[begin:end], self.right, alpha=self.scale)
        if self.magnitude is None:
            return
        if self.by_column:
            block.mul_(self.magnitude / self.column_squares.sqrt().float())
        else:
            block.mul_((self.magnitude[begin:end] / torch.linalg.vector_norm(block, dim=1))[:, None])

    def count_column_norms(self, block: torch.Tensor, begin: int, end: int) -> None:
        """First pass over an embedding for DoRA; changes `block`."""
        block.addmm_(self.left[begin:end], self.right, alpha=self.scale)
        self.column_squares = self.column_squares + block.double().pow(2).sum(0)
