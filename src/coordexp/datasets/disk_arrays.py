"""Arrays with a row per image or annotation that are kept on disk, and bounded searches in them.

The files have no name and disappear with the process. They are memory-mapped: rows in use are in the page cache, which
the system frees when it needs memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coordexp.runtime import tuning

TEXT = np.dtype("S16")  # digest of a text; two of 100 million texts have the same one with a probability of 1e-23
_MIXER = np.uint64(0x9E3779B97F4A7C15)


class ArrayFile:
    """Rows of one dtype, appended to a file in `folder` (by default that for temporary files), then mapped."""

    def __init__(self, dtype: Any, shape: tuple[int, ...] = (), folder: str | Path | None = None):
        self.dtype, self._shape, self._folder = np.dtype(dtype), shape, folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- closed by `finish`

    def append(self, rows: np.ndarray) -> None:
        """Append rows; OSError if the disk is full."""
        self._file.write(np.ascontiguousarray(rows, self.dtype))

    def finish(self, writable: bool = False) -> np.ndarray:
        """The rows, mapped; nothing can be appended after this."""
        with self._file as file:
            file.flush()
            if not file.tell():
                return np.zeros((0, *self._shape), self.dtype)
            mapped = np.memmap(file, self.dtype, "r+" if writable else "r")
            return np.asarray(mapped).reshape(-1, *self._shape)


class KeyFile:
    """Ids as keys of a fixed size: int64 if all are integers, else TEXT (then 1 and "1" are the same id)."""

    def __init__(self, folder: str | Path | None = None):
        self._folder = folder
        self._file = ArrayFile(np.int64, folder=folder)

    def append(self, keys: np.ndarray) -> None:
        """Append what `keys_of` returns."""
        if keys.dtype == TEXT and self._file.dtype != TEXT:
            self._file = _text_file(self._file.finish(), self._folder)
        self._file.append(keys if keys.dtype == self._file.dtype else _digests(map(str, keys.tolist())))

    def finish(self) -> np.ndarray:
        """The keys, mapped."""
        return self._file.finish()


def keys_of(ids: list[int | str]) -> np.ndarray:
    """The keys of some ids: int64 if all are integers, else TEXT."""
    return np.array(ids, np.int64) if set(map(type, ids)) <= {int} else _digests(map(str, ids))


def same_kind(first: np.ndarray, second: np.ndarray, folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of keys, both converted to TEXT if one is."""
    if first.dtype == second.dtype:
        return first, second
    return tuple(a if a.dtype == TEXT else _text_file(a, folder).finish() for a in (first, second))


def zeros(count: int, dtype: Any, folder: str | Path | None = None) -> np.ndarray:
    """A writable array of zeros [count] on disk; its space is reserved, since a write to it cannot report an error."""
    file = ArrayFile(dtype, folder=folder)
    for low in range(0, count, tuning.ROWS_PER_BLOCK):
        file.append(np.zeros(min(count - low, tuning.ROWS_PER_BLOCK), dtype))
    return file.finish(writable=True)


def blocks(array: np.ndarray, size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows) of successive parts of an array, of `size` or else ROWS_PER_BLOCK rows."""
    size = size or tuning.ROWS_PER_BLOCK
    for low in range(0, len(array), size):
        yield low, array[low : low + size]


def without_rows(array: np.ndarray, rows: np.ndarray, folder: str | Path | None = None) -> np.ndarray:
    """The array without these rows, sorted int64 [K]."""
    if not len(rows):
        return array
    file = ArrayFile(array.dtype, array.shape[1:], folder)
    for low, block in blocks(array):
        a, b = np.searchsorted(rows, [low, low + len(block)])
        file.append(np.delete(block, rows[a:b] - low, axis=0))
    return file.finish()


def repeated_rows(keys: np.ndarray) -> np.ndarray:
    """The rows whose key an earlier row has, sorted int64 [K]."""
    if _increasing(keys):
        return np.zeros(0, np.int64)
    found = []
    for _, rows in _parts(keys):
        repeated = np.ones(len(rows), bool)
        repeated[np.unique(keys[rows], return_index=True)[1]] = False
        found.append(rows[repeated])
    return np.sort(np.concatenate(found))


def find_rows(keys: np.ndarray, wanted: np.ndarray, folder: str | Path | None = None) -> np.ndarray:
    """The row of each `wanted` key in `keys`, which are unique; -1 if it has none. int64 [len(wanted)], on disk."""
    found = zeros(len(wanted), np.int64, folder)
    for choose, rows in _parts(keys):
        sorted_rows = rows[np.argsort(keys[rows])]
        own = keys[sorted_rows]
        for low, block in blocks(wanted):
            chosen = choose(block)
            position = np.searchsorted(own, block[chosen])
            position[position == len(own)] = -1  # larger than all keys
            matches = own[position] == block[chosen] if len(own) else np.zeros(len(chosen), bool)
            found[low + chosen[matches]] = sorted_rows[position[matches]]
            found[low + chosen[~matches]] = -1
    return found


def group_rows(groups: np.ndarray, count: int, folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows by group, in each in their order, int64; bounds, int64 [count + 1]), both on disk.

    groups: int64, 0..count-1 or -1 for a row that is left out. Group i has `rows[bounds[i]:bounds[i + 1]]`.
    """
    next_row = zeros(count + 2, np.int64, folder)  # of group i, at i + 1: in the end, the bounds
    for _, block in blocks(groups):
        np.add.at(next_row, block[block >= 0] + 2, 1)
    total = 0
    for _, block in blocks(next_row):
        block[:] = np.cumsum(block) + total
        total = block[-1]
    rows = zeros(int(next_row[-1]), np.int64, folder)
    for low, block in blocks(groups):
        order = np.argsort(block, kind="stable")
        order = order[np.searchsorted(block[order], 0) :]
        own = block[order]
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        lengths = np.diff(starts, append=len(own))
        within = np.arange(len(own)) - np.repeat(starts, lengths)
        rows[next_row[own + 1] + within] = low + order
        next_row[own[starts] + 1] += lengths
    return rows, next_row[:-1]


def _increasing(keys: np.ndarray) -> bool:
    """Whether each key is larger than the one before, which shows cheaply that none is repeated."""
    last = None
    for _, block in blocks(keys):
        if (last is not None and block[0] <= last) or (block[1:] <= block[:-1]).any():
            return False
        last = block[-1]
    return True


def _parts(keys: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Partition rows by key, in parts of about KEYS_IN_MEMORY: (function that chooses such rows of a block, rows)."""
    count = max(-(-len(keys) // tuning.KEYS_IN_MEMORY), 1)
    for part in range(count):

        def choose(block: np.ndarray, part: int = part) -> np.ndarray:
            return np.flatnonzero(_mixed(block) % np.uint64(count) == part) if count > 1 else np.arange(len(block))

        yield choose, np.concatenate([low + choose(block) for low, block in blocks(keys)] or [np.zeros(0, np.int64)])


def _mixed(keys: np.ndarray) -> np.ndarray:
    """A hash of each key, uint64."""
    first = np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), -1)[:, 0]
    return (first * _MIXER) >> np.uint64(32)


def _text_file(keys: np.ndarray, folder: str | Path | None) -> ArrayFile:
    """The TEXT keys of integers."""
    file = ArrayFile(TEXT, folder=folder)
    for _, block in blocks(keys):
        file.append(_digests(map(str, block.tolist())))
    return file


def _digests(texts: Iterable[str]) -> np.ndarray:
    digests = [hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts]
    return np.array(digests, TEXT)
