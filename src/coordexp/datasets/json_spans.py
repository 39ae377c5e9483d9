"""Byte positions of the elements of a large JSON file, found without loading it.

COCO and LVIS files are one object with long arrays of objects. `find_elements` finds the byte span of every element in
one pass of numpy over chunks, and keeps it on disk. A gigabyte takes a few seconds.
"""

from __future__ import annotations

import bisect
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from coordexp.datasets.disk_arrays import ArrayFile
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, located

Mapper = Callable[..., Iterable[Any]]
BULK = 256  # a nested array or object longer than this many bytes is bulk
State = tuple[int, int, int | None, int | None]  # bracket depth, inside a string, starts of an open element and bulk
_START, _BETWEEN_ELEMENTS, _FINISHED = ((depth, 0, None, None) for depth in (0, 2, 0))
_NEXT_ELEMENT = re.compile(rb"\}\s*,\s*(?=\{)")
_QUOTE, _BACKSLASH = 0x22, 0x5C
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[ord("{"), ord("[")]] = 1
_STEP[[ord("}"), ord("]")]] = -1
_KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*$', re.DOTALL)
_KEY_BYTES = 256


class Elements(msgspec.Struct, frozen=True):
    """The objects of an array: byte spans int64 [N, 2] (start, end) of each, in file order, on disk.

    bulk: spans [K, 2] of the contents of long nested arrays and objects (mostly segmentations). A reader that does not
    need them leaves these bytes out.
    """

    spans: np.ndarray
    bulk: np.ndarray


def find_elements(
    path: str | Path, names: Sequence[str], mapper: Mapper = map, folder: str | Path | None = None
) -> dict[str, Elements]:
    """The objects in each top-level array of `names`; arrays that the file lacks are left out.

    With the `map` of a process pool as `mapper`, a large file is scanned in parallel. The spans are kept in `folder`,
    by default that for temporary files. DataError if the file is not one JSON object, is truncated, or has one of the
    keys twice.
    """
    with Path(path).open("rb") as handle:
        head = handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not head.startswith(b"{"):
            expected = "a JSON object with the lists images, annotations and categories"
            raise DataError(
                located("not an annotation file", file=path, expected=expected, found=head[:20].decode("latin1"))
            )
        arrays, spans, bulk = _scan(path, _cuts(handle), mapper, folder)
        elements = {}
        for low, high in arrays:
            name = _key_before(handle, low)
            if name in names and name in elements:
                fix = "merge the two lists, or remove one of them"
                raise DataError(located("the key occurs twice", file=path, field=name, fix=fix))
            if name in names:
                elements[name] = Elements(spans_between(spans, low, high), spans_between(bulk, low, high))
        return elements


def element_spans(
    path: str | Path, names: Sequence[str], mapper: Mapper = map, folder: str | Path | None = None
) -> dict[str, np.ndarray]:
    """The spans found by `find_elements`, without those of the bulk."""
    return {name: found.spans for name, found in find_elements(path, names, mapper, folder).items()}


def spans_between(spans: np.ndarray, low: int, high: int) -> np.ndarray:
    """Those of the sorted `spans` [N, 2] that start in low..high-1."""
    a, b = (bisect.bisect_left(spans, offset, key=lambda span: span[0]) for offset in (low, high))
    return spans[a:b]


def _cuts(handle) -> list[int]:
    """Offsets to start scanning at: 0, and what looks like the start of an element once per range."""
    size = os.fstat(handle.fileno()).st_size
    cuts = [0]
    for target in range(tuning.JSON_RANGE_BYTES, size - tuning.JSON_RANGE_BYTES // 2, tuning.JSON_RANGE_BYTES):
        match = _NEXT_ELEMENT.search(os.pread(handle.fileno(), tuning.JSON_READ_BYTES, target))
        if match:
            cuts.append(target + match.end())
    return cuts


def _scan(
    path: str | Path, cuts: list[int], mapper: Mapper, folder: str | Path | None
) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """(first and last bytes of the top-level arrays and objects, spans of the elements, spans of the bulk).

    A cut is assumed to lie between two elements of a top-level array, outside any string. This is proven if the scan of
    the range before it ends in exactly this state; otherwise the range is scanned again.
    """
    tasks = [
        (str(path), low, high, _BETWEEN_ELEMENTS if low else _START)
        for low, high in zip(cuts, [*cuts[1:], None], strict=True)
    ]
    opens, closes, state = [], [], _START
    files = ArrayFile(np.int64, (2,), folder), ArrayFile(np.int64, (2,), folder)
    for task, result in zip(tasks, mapper(_range_events, tasks), strict=True):
        found = result if state == task[3] else _range_events((*task[:3], state))
        opens += found[0]
        closes += found[1]
        for file, spans in zip(files, found[2:4], strict=True):
            file.append(spans)
        state = found[4]
    if state != _FINISHED:
        fix = "the file is truncated or damaged: download it again"
        raise DataError(located("the JSON ends before its last bracket is closed", file=path, fix=fix))
    return list(zip(opens, closes, strict=True)), *(file.finish() for file in files)


def _range_events(
    task: tuple[str, int, int | None, State],
) -> tuple[list[int], list[int], np.ndarray, np.ndarray, State]:
    """What bytes low..high (None: to the end) of a file hold, if `state` is that at their start.

    Returns the first bytes of top-level values, their last bytes, the spans of the elements and of the bulk that end in
    the range, and the state at its end.
    """
    path, low, high, (depth, in_string, *unclosed) = task
    events: list[list[np.ndarray]] = [[] for _ in range(6)]
    with Path(path).open("rb") as handle:
        handle.seek(low)
        for base, data in _chunks(handle, low, high):
            position, step, in_string = _brackets(data, in_string)
            level = depth + np.cumsum(step, dtype=np.int64)
            depth = int(level[-1]) if len(level) else depth
            position = position + base
            rising = step > 0
            for k, (above, opening) in enumerate(((2, True), (1, False), (3, True), (2, False), (4, True), (3, False))):
                events[k].append(position[(level == above) & (rising == opening)])
    opens, closes, *inner = (np.concatenate(kind) if kind else np.zeros(0, np.int64) for kind in events)
    elements, element = _pairs(*inner[:2], unclosed[0])
    bulk, nested = _pairs(*inner[2:], unclosed[1])
    elements = elements + np.array([0, 1])
    bulk = bulk[bulk[:, 1] - bulk[:, 0] > BULK] + np.array([1, 0])
    return opens.tolist(), closes.tolist(), elements, bulk, (depth, in_string, element, nested)


def _pairs(opens: np.ndarray, closes: np.ndarray, unclosed: int | None) -> tuple[np.ndarray, int | None]:
    """(first and last bytes of the pairs of brackets that are closed [N, 2], the one that is open at the end)."""
    if unclosed is not None:
        opens = np.concatenate([[unclosed], opens])
    count = min(len(opens), len(closes))
    return np.stack([opens[:count], closes[:count]], axis=1), int(opens[-1]) if len(opens) > count else None


def _chunks(handle: IO[bytes], base: int, end: int | None) -> Iterator[tuple[int, bytes | bytearray]]:
    """(offset, bytes) up to `end`; no chunk ends in a backslash, and each is valid until the next one is read."""
    buffer = bytearray(tuning.JSON_READ_BYTES)
    while size := handle.readinto(memoryview(buffer)[: None if end is None else end - base]):
        data = buffer if size == len(buffer) else buffer[:size]
        while data.endswith(b"\\") and (more := handle.read(1)):
            data = data + more
        yield base, data
        base += len(data)


def _brackets(data: bytes | bytearray, in_string: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(positions, +1 or -1) of the brackets outside strings, and whether the chunk ends inside one.

    `c & 0xD9 == 0x59` holds for the four brackets and for `Y`, `_`, `y`, DEL, which have step 0.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    low, found, quotes = _scratch(len(buffer))
    np.equal(np.bitwise_and(buffer, 0xD9, out=low), 0x59, out=found)
    np.logical_or(found, np.equal(buffer, _QUOTE, out=quotes), out=found)
    position = np.flatnonzero(found)
    char = buffer[position]
    quote = char == _QUOTE
    if b"\\" in data:
        quote &= ~_escaped(buffer, position)
    inside = np.cumsum(quote.view(np.uint8), dtype=np.uint8) + np.uint8(in_string) & 1  # overflow keeps the parity
    step = np.where(inside, 0, _STEP[char])
    kept = np.flatnonzero(step)
    return position[kept], step[kept], int(inside[-1]) if len(inside) else in_string


@functools.lru_cache(maxsize=2)
def _scratch(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reused buffers: allocating fresh pages would cost more than the arithmetic."""
    return np.empty(size, np.uint8), np.empty(size, bool), np.empty(size, bool)


def _escaped(buffer: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Bool [N]: whether the character follows an odd number of backslashes."""
    escaped = (buffer[position - 1] == _BACKSLASH) & (position > 0)
    for i in np.flatnonzero(escaped):
        run, at = 0, int(position[i]) - 1
        while at >= 0 and buffer[at] == _BACKSLASH:
            run, at = run + 1, at - 1
        escaped[i] = run % 2 == 1
    return escaped


def _key_before(handle, position: int) -> str | None:
    low = max(0, position - _KEY_BYTES)
    match = _KEY.search(os.pread(handle.fileno(), position - low, low))
    return match.group(1).decode("utf-8", "replace") if match else None


def read_spans(fd: int, spans: np.ndarray, gap: int = 1 << 12) -> list[bytes]:
    """The bytes of each span [N, 2], in the given order; spans at most `gap` bytes apart are read together."""
    if not len(spans):
        return []
    order = np.argsort(spans[:, 0], kind="stable")
    low, high = spans[order, 0], spans[order, 1]
    breaks = np.flatnonzero(low[1:] - high[:-1] > gap) + 1
    out: list[bytes] = [b""] * len(spans)
    for run in np.split(order, breaks):
        base, end = int(spans[run[0], 0]), int(spans[run[-1], 1])
        block = os.pread(fd, end - base, base)
        for i, (a, b) in zip(run.tolist(), (spans[run] - base).tolist(), strict=True):
            out[i] = block[a:b]
    return out
