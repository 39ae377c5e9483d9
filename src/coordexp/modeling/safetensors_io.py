"""Streaming safetensors I/O: read headers and byte ranges, write files in parallel pieces."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from coordexp.modeling.parallel_writer import Output, aligned_buffer
from coordexp.runtime import tuning
from coordexp.runtime.errors import ModelError, located

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_SHARD_NAME = re.compile(r"[^/\\\x00]{1,240}\.safetensors")
_MAX_HEADER = 100 << 20
_REFETCH = "the file is damaged or incomplete: fetch or create it again"


class _HeaderEntry(msgspec.Struct, frozen=True):
    """A tensor in the header of a file; offsets are relative to the end of the header."""

    dtype: str
    shape: tuple[Annotated[int, Meta(ge=0)], ...]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor of a file: safetensors dtype name, shape, and byte range [begin, end) from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.begin


class ShardFile(msgspec.Struct, frozen=True):
    """Header of one safetensors file; `tensors` are in the order of their byte ranges."""

    path: Path
    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]


class Checkpoint(msgspec.Struct, frozen=True):
    """The weight files of a checkpoint folder by name, and the metadata of its index if it has one."""

    folder: Path
    shards: dict[str, ShardFile]
    index_metadata: dict | None

    @property
    def sharded(self) -> bool:
        """True if the checkpoint has an index of shards."""
        return self.index_metadata is not None

    def find(self, name: str) -> tuple[ShardFile, TensorSpec] | None:
        """The file and the specification of tensor `name`, or None."""
        for shard in self.shards.values():
            if name in shard.tensors:
                return shard, shard.tensors[name]
        return None

    def names(self) -> Iterator[str]:
        """The names of all tensors."""
        for shard in self.shards.values():
            yield from shard.tensors


def read_header(path: str | Path) -> ShardFile:
    """Read the header of a safetensors file; ModelError if the file is damaged, malformed or truncated."""
    path = Path(path)
    if not path.exists():
        raise ModelError(located("weight file is missing", file=path, fix="fetch the checkpoint again"))
    if not path.is_file():
        raise ModelError(located("not a regular file", file=path, fix=_REFETCH))
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ModelError(located("not a safetensors file", file=path, found=f"{size} bytes", fix=_REFETCH))
        header = _object(handle.read(length), "damaged safetensors header", path)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(located("damaged safetensors header", file=path, field="__metadata__", fix=_REFETCH))
    specs = [_spec(path, name, entry, 8 + length) for name, entry in header.items()]
    specs.sort(key=lambda spec: (spec.begin, spec.end))
    end = 8 + length
    for spec in specs:
        if spec.begin != end:
            problem = "the data of a tensor overlaps that of another one, or leaves a gap"
            facts = {"expected": end - 8 - length, "found": spec.begin - 8 - length}
            raise ModelError(located(problem, file=path, field=spec.name, **facts, fix=_REFETCH))
        end = spec.end
    if end != size:
        raise ModelError(
            located("file is truncated or has extra bytes", file=path, expected=end, found=size, fix=_REFETCH)
        )
    return ShardFile(path=path, tensors={spec.name: spec for spec in specs}, metadata=metadata)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the headers of the weight files of a folder: a single file, or shards with an index."""
    folder = Path(folder)
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if not index.exists():
        if not single.exists():
            fix = f"expected {SINGLE_NAME} or {INDEX_NAME}; only safetensors checkpoints are supported"
            raise ModelError(located("no weights in the folder", file=folder, fix=fix))
        return Checkpoint(folder=folder, shards={SINGLE_NAME: read_header(single)}, index_metadata=None)
    if single.exists():
        problem, fix = f"the folder has {SINGLE_NAME} as well as an index of shards", "remove one of the two"
        raise ModelError(located(problem, file=index, fix=fix))
    weight_map, metadata = _read_index(index)
    shards = {name: read_header(folder / name) for name in dict.fromkeys(weight_map.values())}
    for tensor, name in weight_map.items():
        if tensor not in shards[name].tensors:
            raise ModelError(located(f"{name} does not contain a tensor listed in the index", file=index, field=tensor))
    seen: set[str] = set()
    for tensor in (tensor for shard in shards.values() for tensor in shard.tensors):
        if tensor in seen:
            raise ModelError(located("two shards contain the same tensor", file=index, field=tensor, fix=_REFETCH))
        seen.add(tensor)
    return Checkpoint(folder=folder, shards=shards, index_metadata=metadata)


def _read_index(index: Path) -> tuple[dict[str, str], dict]:
    if not index.is_file() or index.stat().st_size > _MAX_HEADER:
        raise ModelError(located("damaged index of shards", file=index, fix=_REFETCH))
    content = _object(index.read_bytes(), "damaged index of shards", index)
    weight_map, metadata = content.get("weight_map"), content.get("metadata") or {}
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise ModelError(located("damaged index of shards", file=index, field="weight_map", fix=_REFETCH))
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or len(name.encode()) > 255:
            problem, expected = "a shard must be in the folder of the checkpoint", "a name with .safetensors"
            raise ModelError(located(problem, file=index, field=tensor, expected=expected, found=name))
    return weight_map, metadata


def _object(text: bytes, problem: str, path: Path) -> dict:
    """The JSON object in `text`; ModelError with `problem` for other content, repeated keys or invalid Unicode."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        if len(found := dict(pairs)) != len(pairs):
            repeated = collections.Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"repeated key {repeated[0][0]!r}")
        for text in (*found, *(value for value in found.values() if isinstance(value, str))):
            text.encode("utf-8")  # ValueError for half of a surrogate pair
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelError(located(f"{problem}: {reason}", file=path, fix=_REFETCH)) from error
    return content


def read_bytes(shard: ShardFile, spec: TensorSpec, begin: int = 0, end: int | None = None) -> bytearray:
    """Bytes [begin, end) of a tensor, relative to its start, read without memory-mapping the file."""
    buffer = bytearray((spec.nbytes if end is None else end) - begin)
    read_into(shard, spec, begin, memoryview(buffer))
    return buffer


def read_into(shard: ShardFile, spec: TensorSpec, begin: int, view: memoryview) -> None:
    """Fill `view` with the bytes of a tensor, starting at its byte `begin`."""
    with shard.path.open("rb", buffering=0) as handle:
        handle.seek(spec.begin + begin)
        while view:
            count = handle.readinto(view)
            if not count:
                raise ModelError(located("file ended inside a tensor", file=shard.path, field=spec.name, fix=_REFETCH))
            view = view[count:]


class Job(NamedTuple):
    """A piece of a tensor: `run(out, position)` writes exactly `nbytes` bytes at `position` of the file."""

    nbytes: int
    run: Callable[[Output, int], None]


class Entry(msgspec.Struct, frozen=True):
    """One tensor to write: its entry in the header, and the jobs that write its pieces in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    jobs: Callable[[], Iterable[Job]]

    @property
    def nbytes(self) -> int:
        """Size in bytes, which the pieces must add up to."""
        return nbytes(self.dtype, self.shape)


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Size in bytes of a tensor with a safetensors dtype and shape."""
    count = ITEM_BYTES[dtype]
    for side in shape:
        count *= side
    return count


class Workers(NamedTuple):
    """Threads that write pieces, one thread that flushes and closes files, and the files it has been given."""

    pieces: Executor
    disk: Executor
    closing: list[Future]


@contextlib.contextmanager
def workers() -> Iterator[Workers]:
    """Threads that write pieces of files; reading, arithmetic and writing all release the GIL.

    Their number is OMP_NUM_THREADS (which Snakemake sets to the threads of the rule) or the number of cores plus one.
    On exit, every file has been flushed to disk; OSError if that failed.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    count = min(tuning.WRITER_THREADS, int(given) if given.isdecimal() else len(os.sched_getaffinity(0)) + 1)
    with ThreadPoolExecutor(max(1, count)) as pieces, ThreadPoolExecutor(1) as disk:
        pool = Workers(pieces, disk, [])
        yield pool
        for future in pool.closing:
            future.result()


def write_file(path: Path, entries: list[Entry], metadata: dict[str, str], pool: Workers) -> str:
    """Write a safetensors file with its pieces in parallel; returns its SHA-256.

    Only the pieces being written are in memory.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for entry in entries:
        offsets = [offset, offset + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    out, position = Output(path, len(start) + offset, hashed=True), len(start)
    written = False
    try:
        out.write(0, start)
        _write_pieces(path, entries, out, position, pool.pieces)
        written = True
    finally:
        pool.closing.append(pool.disk.submit(out.close, flush=written))  # while the next file is written
    return out.sha256


def _write_pieces(path: Path, entries: list[Entry], out: Output, position: int, pool: Executor) -> None:
    running: list[Future] = []
    try:
        for entry in entries:
            end = position + entry.nbytes
            for job in entry.jobs():
                running.append(pool.submit(_run, job, out, position))
                position += job.nbytes
            if position != end:
                found = entry.nbytes + position - end
                problem = "the pieces do not add up to the tensor"
                raise ModelError(located(problem, file=path, field=entry.name, expected=entry.nbytes, found=found))
        for future in running:
            future.result()
    except BaseException:
        out.abort()
        raise
    finally:
        for future in running:
            future.cancel()
        wait(running)


def _run(job: Job, out: Output, position: int) -> None:
    try:
        job.run(out, position)
    except BaseException:
        out.abort()
        raise


def copied(shard: ShardFile, spec: TensorSpec) -> Entry:
    """An entry that copies the bytes of a tensor."""
    return Entry(spec.name, spec.dtype, spec.shape, lambda: copy_jobs(shard, spec, 0, spec.nbytes))


def copy_jobs(shard: ShardFile, spec: TensorSpec, begin: int, end: int) -> Iterator[Job]:
    """Jobs that copy bytes [begin, end) of a tensor."""
    for low in range(begin, end, tuning.COPY_BYTES):
        high = min(low + tuning.COPY_BYTES, end)
        yield Job(high - low, partial(_copy_range, shard, spec, low, high))


def _copy_range(shard: ShardFile, spec: TensorSpec, begin: int, end: int, out: Output, position: int) -> None:
    view = aligned_buffer("copied", end - begin, position)
    read_into(shard, spec, begin, view)
    out.write(position, view)


def link_or_copy(source: Path, target: Path) -> str:
    """Create `target` as a hard link to the weights `source`, or as a copy; returns `link` or `copy`.

    Other files, which people edit, are always copied, and weights where links are impossible.
    """
    real = source.resolve(strict=True)
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(real, target)
            return "link"
    shutil.copyfile(real, target)
    return "copy"


def write_index(folder: Path, weight_map: dict[str, str], total_size: int, metadata: dict) -> None:
    """Write the index file of a sharded checkpoint; other metadata of the original index is kept."""
    content = {"metadata": {**metadata, "total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _spec(path: Path, name: str, entry: object, data_start: int) -> TensorSpec:
    try:
        tensor = msgspec.convert(entry, _HeaderEntry)
    except msgspec.ValidationError as error:
        raise ModelError(
            located(f"damaged safetensors header: {error}", file=path, field=name, fix=_REFETCH)
        ) from error
    begin, end = tensor.data_offsets
    if tensor.dtype not in ITEM_BYTES:
        raise ModelError(
            located("unsupported dtype", file=path, field=name, expected=sorted(ITEM_BYTES), found=tensor.dtype)
        )
    if begin > end or end - begin != nbytes(tensor.dtype, tensor.shape):
        raise ModelError(located("invalid tensor entry", file=path, field=name, found=entry, fix=_REFETCH))
    return TensorSpec(name, tensor.dtype, tensor.shape, begin=data_start + begin, end=data_start + end)
