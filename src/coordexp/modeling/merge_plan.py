"""The arithmetic of merging: how each output tensor is computed, and writing it file by file in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.adapter import Adapter, Lora, Offsets
from coordexp.modeling.embedding_init import read_rows, single_threaded_torch, to_bytes, torch_dtype
from coordexp.modeling.expert_merge import ExpertFactors, ExpertUpdate, expert_updates
from coordexp.modeling.experts import in_memory, stored
from coordexp.modeling.families import EmbeddingTensors, ExpertNames
from coordexp.modeling.parallel_writer import Output, aligned_buffer
from coordexp.runtime.errors import ModelError, located

if TYPE_CHECKING:
    import torch

BLOCK_ITEMS = 1 << 21  # elements per block of rows: 8 MB in float32; the rounding of a matrix product depends on it

_TRAINED_BASE = "merge into the checkpoint that training used"


class TensorUpdate(msgspec.Struct, frozen=True):
    """How one output tensor is computed: `source` (or `replaced`) plus `lora` or `experts`, or plus `offset` rows.

    The sum is computed in float32 and rounded once to `dtype`, a safetensors dtype name.
    """

    name: str
    source: tuple[shards.ShardFile, shards.TensorSpec]
    dtype: str
    replaced: shards.TensorSpec | None = None
    lora: Lora | None = None
    offset: shards.TensorSpec | None = None
    experts: ExpertUpdate | None = None

    @property
    def parts(self) -> tuple:
        """What is applied to the source; two tensors with the same source and parts are equal."""
        return (self.replaced, self.lora, self.offset, self.experts)

    @property
    def unchanged(self) -> bool:
        """True when the output has the bytes of the source."""
        return not any(self.parts) and self.dtype == self.source[1].dtype


class MergePlan(msgspec.Struct, frozen=True):
    """Every output file with its tensors in order.

    files, metadata: by file name. untied: the merged checkpoint has an output layer of its own although the base ties
    it to the embedding table. applied: how many updates of each kind, for the manifest.
    """

    kind: Literal["adapter", "full"]
    files: dict[str, list[TensorUpdate]]
    metadata: dict[str, dict[str, str]]
    index_metadata: dict | None
    trained_files: list[shards.ShardFile]
    adapter: Adapter | None
    offsets: Offsets | None
    untied: bool
    applied: dict


def plan_adapter(
    base: shards.Checkpoint, adapter: Adapter, embeddings: EmbeddingTensors, experts: ExpertNames | None = None
) -> MergePlan:
    """Apply an adapter to each tensor of the base; ModelError when the adapter does not fit this base."""
    _check_names(base, adapter, embeddings)
    _check_offsets(base, adapter, embeddings)
    of_experts = expert_updates(base, adapter, experts)
    files: dict[str, list[TensorUpdate]] = {}
    untied = False
    for file_name, shard in base.shards.items():
        files[file_name] = []
        for spec in shard.tensors.values():
            if embeddings.tied and spec.name == embeddings.head:
                continue  # a redundant copy of the tied table; written below if it has to differ
            update = _update(adapter, spec.name, (shard, spec), embeddings, of_experts.get(spec.name))
            files[file_name].append(update)
            if embeddings.tied and spec.name == embeddings.embedding:
                head = _update(adapter, embeddings.head, (shard, spec), embeddings)
                if head.parts != update.parts:
                    files[file_name].append(head)
                    untied = True
    for update in (update for updates in files.values() for update in updates):
        _check_shapes(adapter, update)
    return MergePlan(
        kind="adapter",
        files=files,
        metadata={name: shard.metadata for name, shard in base.shards.items()},
        index_metadata=base.index_metadata,
        trained_files=[adapter.file],
        adapter=adapter,
        offsets=adapter.offsets,
        untied=untied,
        applied={
            "lora": sum(lora.magnitude is None for lora in adapter.lora.values()),
            "dora": sum(lora.magnitude is not None for lora in adapter.lora.values()),
            "replaced": len(adapter.replaced),
            "offset_tables": 0 if adapter.offsets is None else 1 + (adapter.offsets.head is not None),
        }
        | ({"experts": len(adapter.experts)} if adapter.experts else {}),
    )


def plan_full(
    base: shards.Checkpoint,
    trained: shards.Checkpoint,
    embeddings: EmbeddingTensors,
    experts: ExpertNames | None = None,
) -> MergePlan:
    """Full-parameter weights, converted to the base's dtypes; ModelError when names or shapes differ from the base.

    Experts may be stored differently from the base: transformers saves them in its own form.
    """
    optional = {embeddings.head} if embeddings.tied else set()
    expected = in_memory(_shapes(base), {}, experts)
    found = in_memory(_shapes(trained), expected, experts)
    different = sorted((expected.keys() ^ found.keys()) - optional)
    different += sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
    if different:
        problem = f"{len(different)} tensors differ from the base in name or shape; the first is {different[0]}"
        raise ModelError(located(problem, file=trained.folder, fix="merge with the base that training used"))
    dtypes = {stored(spec.name, experts).name: spec.dtype for spec in _specs(base)}
    files = {
        name: [
            TensorUpdate(spec.name, (shard, spec), dtypes.get(stored(spec.name, experts).name, spec.dtype))
            for spec in shard.tensors.values()
        ]
        for name, shard in trained.shards.items()
    }
    return MergePlan(
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


def _specs(checkpoint: shards.Checkpoint) -> Iterator[shards.TensorSpec]:
    for shard in checkpoint.shards.values():
        yield from shard.tensors.values()


def _shapes(checkpoint: shards.Checkpoint) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in _specs(checkpoint)}


class Written(NamedTuple):
    """How each file was written (`rewritten`, `link` or `copy`), and the SHA-256 of those rewritten, by file name."""

    methods: dict[str, str]
    sha256: dict[str, str]


def write(plan: MergePlan, folder: Path) -> Written:
    """Write every file of a plan to `folder`."""
    with shards.workers() as pool, single_threaded_torch():
        return _write(plan, folder, pool)


def _write(plan: MergePlan, folder: Path, pool: shards.Workers) -> Written:
    methods, sha256, weight_map, total = {}, {}, {}, 0
    for file_name, updates in plan.files.items():
        source = unchanged_file(file_name, updates)
        if source is not None:
            methods[file_name] = shards.link_or_copy(source, folder / file_name)
        else:
            entries = [_entry(plan, update) for update in updates]
            sha256[file_name] = shards.write_file(folder / file_name, entries, plan.metadata[file_name], pool)
            methods[file_name] = "rewritten"
        weight_map |= {update.name: file_name for update in updates}
        total += size(updates)
    if plan.index_metadata is not None:
        shards.write_index(folder, weight_map, total, plan.index_metadata)
    return Written(methods, sha256)


def unchanged_file(file_name: str, updates: list[TensorUpdate]) -> Path | None:
    """The input file with the same content as an output file, or None."""
    shard = updates[0].source[0] if updates else None
    if shard is None or shard.path.name != file_name or len(updates) != len(shard.tensors):
        return None
    return shard.path if all(update.unchanged and update.source[0] is shard for update in updates) else None


def size(updates: list[TensorUpdate]) -> int:
    """Bytes of the tensors of an output file."""
    return sum(shards.nbytes(update.dtype, update.source[1].shape) for update in updates)


def _update(
    adapter: Adapter,
    name: str,
    source: tuple[shards.ShardFile, shards.TensorSpec],
    embeddings: EmbeddingTensors,
    experts: ExpertUpdate | None = None,
) -> TensorUpdate:
    offset = None
    if adapter.offsets is not None and name in (embeddings.embedding, embeddings.head):
        own = adapter.offsets.head if name == embeddings.head else adapter.offsets.embed
        offset = own if own is not None else adapter.offsets.embed
    replaced, lora = adapter.replaced.get(name), adapter.lora.get(name)
    return TensorUpdate(name, source, source[1].dtype, replaced, lora, offset, experts)


def _check_names(base: shards.Checkpoint, adapter: Adapter, embeddings: EmbeddingTensors) -> None:
    names = {*base.names(), *([embeddings.head] if embeddings.tied else [])}
    for name in [*adapter.lora, *adapter.replaced]:
        if name not in names:
            problem = "the adapter changes a tensor that the base does not have"
            raise ModelError(located(problem, file=base.folder, field=name, fix=_TRAINED_BASE))


def _check_offsets(base: shards.Checkpoint, adapter: Adapter, embeddings: EmbeddingTensors) -> None:
    if adapter.offsets is None:
        return
    table = base.find(embeddings.embedding)
    if table is None:
        problem = "the base has no embedding table"
        raise ModelError(located(problem, file=base.folder, expected=embeddings.embedding))
    if not embeddings.tied and base.find(embeddings.head) is not None and adapter.offsets.head is None:
        problem = "the adapter was trained with tied embeddings, but this base has an output layer of its own"
        raise ModelError(located(problem, file=base.folder, fix=_TRAINED_BASE))
    hidden, expected = adapter.offsets.embed.shape[1], table[1].shape
    if hidden != expected[1] or adapter.offsets.end >= expected[0]:
        problem = "the coordinate offsets do not fit the embedding table"
        found = (adapter.offsets.end, hidden)
        raise ModelError(located(problem, file=base.folder, expected=expected, found=found))


def _check_shapes(adapter: Adapter, update: TensorUpdate) -> None:
    shape = update.source[1].shape
    if update.offset is not None and (update.lora is not None or update.replaced is not None):
        problem = "the adapter has coordinate offsets and also trains the full embedding table"
        raise ModelError(located(problem, file=adapter.file.path, field=update.name))
    if update.experts is not None and (update.lora is not None or update.replaced is not None):
        raise ModelError(located("two adapters for one weight", file=adapter.file.path, field=update.name))
    if update.replaced is not None:
        _check_shape(adapter, update.name, shape, update.replaced.shape)
    if update.lora is not None:
        a, b = update.lora.a.shape, update.lora.b.shape
        _check_shape(adapter, update.name, shape, (a[1], b[0]) if update.lora.embedding else (b[0], a[1]))


def _check_shape(adapter: Adapter, name: str, expected: tuple, found: tuple) -> None:
    if found != expected:
        problem = "shape differs from the base"
        facts = {"expected": expected, "found": found, "fix": _TRAINED_BASE}
        raise ModelError(located(problem, file=adapter.file.path, field=name, **facts))


def _entry(plan: MergePlan, update: TensorUpdate) -> shards.Entry:
    shard, spec = update.source
    if update.unchanged:
        return shards.Entry(update.name, spec.dtype, spec.shape, shards.copied(shard, spec).jobs)
    jobs = _offset_jobs if update.offset is not None else _block_jobs
    return shards.Entry(update.name, update.dtype, spec.shape, partial(jobs, plan, update))


def _offset_jobs(plan: MergePlan, update: TensorUpdate) -> Iterator[shards.Job]:
    """Copy the table except for the coordinate rows, to which the offsets are added in float32 and rounded once."""
    shard, spec = update.source
    start, stop = plan.offsets.start, plan.offsets.end + 1
    width = spec.nbytes // spec.shape[0]

    def add_offsets(out: Output, position: int) -> None:
        offsets = read_rows(plan.adapter.file, update.offset, 0, stop - start).float()
        rows = read_rows(shard, spec, start, stop).float() + offsets
        out.write(position, to_bytes(rows, update.dtype))

    yield from shards.copy_jobs(shard, spec, 0, start * width)
    yield shards.Job((stop - start) * width, add_offsets)
    yield from shards.copy_jobs(shard, spec, stop * width, spec.nbytes)


def _block_jobs(plan: MergePlan, update: TensorUpdate) -> Iterator[shards.Job]:
    """Blocks of rows of a changed tensor."""
    source = update.source if update.replaced is None else (plan.adapter.file, update.replaced)
    shape = source[1].shape
    rows, columns = (shape[0] if shape else 1), max(1, math.prod(shape[1:]))
    if update.experts is not None:
        rows, columns = math.prod(shape[:-1]), shape[-1]
    step = max(1, BLOCK_ITEMS // columns)
    spans = [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
    factors: _Factors | ExpertFactors | None = None
    if update.lora is not None:
        factors = _Factors(plan.adapter.file, update.lora)
        if factors.magnitude is not None and factors.by_column:
            for begin, end in spans:
                factors.add_column_squares(_read_floats(source, columns, begin, end), begin, end)
    elif update.experts is not None:
        factors = ExpertFactors(plan.adapter.file, update.experts, shape)

    def compute(begin: int, end: int, out: Output, position: int) -> None:
        block = _read_floats(source, columns, begin, end)
        if factors is not None:
            factors.apply(block, begin, end)
        out.write(position, _round(block, update.dtype, position))

    width = columns * shards.ITEM_BYTES[update.dtype]
    for begin, end in spans:
        yield shards.Job((end - begin) * width, partial(compute, begin, end))


def _read_floats(
    source: tuple[shards.ShardFile, shards.TensorSpec], columns: int, begin: int, end: int
) -> torch.Tensor:
    """Rows [begin, end) of a tensor as float32 [end - begin, columns]; valid until the thread reads its next block."""
    import torch

    shard, spec = source
    width = columns * shards.ITEM_BYTES[spec.dtype]
    raw = aligned_buffer("raw", (end - begin) * width)
    shards.read_into(shard, spec, begin * width, raw)
    floats = torch.frombuffer(aligned_buffer("floats", (end - begin) * columns * 4), dtype=torch.float32)
    return floats.copy_(torch.frombuffer(raw, dtype=torch_dtype(spec.dtype))).view(end - begin, columns)


def _round(block: torch.Tensor, dtype: str, position: int) -> memoryview:
    """The bytes of a float32 block in a safetensors dtype, aligned for writing at `position`."""
    import torch

    view = aligned_buffer("rounded", block.numel() * shards.ITEM_BYTES[dtype], position)
    torch.frombuffer(view, dtype=torch_dtype(dtype)).copy_(block.reshape(-1))
    return view


class _Factors:
    """The two factors of a LoRA update in float32, applied to blocks of rows.

    DoRA rescales a linear weight row by row, but an embedding column by column, which needs the norms of all columns
    beforehand.
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
        """Add the update to `block` (rows [begin, end) of the weight) in place; for DoRA rescale to the magnitude."""
        import torch

        block.addmm_(self.left[begin:end], self.right, alpha=self.scale)
        if self.magnitude is None:
            return
        if self.by_column:
            block.mul_(self.magnitude / self.column_squares.sqrt().float())
        else:
            block.mul_((self.magnitude[begin:end] / torch.linalg.vector_norm(block, dim=1))[:, None])

    def add_column_squares(self, block: torch.Tensor, begin: int, end: int) -> None:
        """First pass over an embedding for DoRA: sum the squares of the updated columns; overwrites `block`."""
        block.addmm_(self.left[begin:end], self.right, alpha=self.scale)
        self.column_squares = self.column_squares + block.double().pow(2).sum(0)
