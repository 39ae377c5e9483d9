"""Strict validation of an annotation file, for every stage that reads one: JSON syntax, encoding, and lists.

The file is memory-mapped, not loaded: a gigabyte takes a few seconds.
"""

from __future__ import annotations

import codecs
import contextlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, located

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Id = Int64 | str
_BYTE_ORDER_MARK = codecs.BOM_UTF8
_FIX = "correct the file: JSON allows neither trailing commas, nor NaN, nor text after the last bracket"
_STRING_OR_NON_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)', re.DOTALL)
_POSITION = re.compile(r"\(byte (\d+)\)")


class _Element(msgspec.Struct, frozen=True, gc=False):
    """Any JSON object; its content is checked for syntax only. All are equal, so that a set of any number has one."""


class _Lists(msgspec.Struct):
    images: set[_Element] = set()
    annotations: set[_Element] = set()
    categories: set[_Element] = set()
    skipped: set[_Element] = set()


def check_annotation_file(path: str | Path) -> np.ndarray:
    """DataError with file and position unless the file is strict JSON in UTF-8 whose lists hold objects only.

    Refused are, for example, a trailing comma, text after the last bracket, and `annotations` as a map. A byte-order
    mark is accepted. NaN and infinite numbers are invalid too, but belong to one entry each, which the caller may
    skip: returns their offsets in the file, int64 [N].
    """
    with mapped_json(path) as data:
        _check_encoding(path, data)
        try:
            _decode_lists(path, data)
        except msgspec.DecodeError as error:
            text, positions = _without_non_finite(data)
            if not positions:
                raise DataError(_syntax_error(path, data, str(error))) from error
            try:
                _decode_lists(path, text)
            except msgspec.DecodeError as other:
                raise DataError(_syntax_error(path, data, str(other))) from other
            return np.array(positions, dtype=np.int64) + _offset(path, data)
    return np.zeros(0, np.int64)


def check_in_entries(path: str | Path, non_finite: np.ndarray, entries: Iterable[np.ndarray]) -> None:
    """DataError for a non-finite number in none of the `entries`, arrays of spans int64 [N, 2] in order."""
    outside = np.ones(len(non_finite), bool)
    for spans in entries:
        if len(spans):
            owner = np.searchsorted(spans[:, 0], non_finite, side="right") - 1
            outside &= (owner < 0) | (spans[np.maximum(owner, 0), 1] <= non_finite)
    for position in non_finite[outside].tolist():
        raise DataError(located(f"NaN or an infinite number at byte {position} is not JSON", file=path, fix=_FIX))


def _decode_lists(path: str | Path, data: memoryview | bytes) -> None:
    """DataError for other than lists of objects, msgspec.DecodeError for invalid syntax."""
    try:
        msgspec.json.decode(data, type=_Lists)
    except msgspec.ValidationError as error:
        expected = "a JSON object with the lists images, annotations and categories"
        raise DataError(located(f"not an annotation file: {error}", file=path, expected=expected)) from error
    except RecursionError as error:
        raise DataError(located("not an annotation file: brackets are nested too deeply", file=path)) from error


def _without_non_finite(data: memoryview) -> tuple[bytes, list[int]]:
    """(the text with 0 for each NaN and infinite number, as long as before; their positions)."""
    positions: list[int] = []

    def replace(match: re.Match) -> bytes:
        token = match.group()
        if token.startswith(b'"'):
            return token
        positions.append(match.start())
        return b"0".ljust(len(token))

    return _STRING_OR_NON_FINITE.sub(replace, data), positions


@contextlib.contextmanager
def mapped_json(path: str | Path) -> Iterator[memoryview]:
    """The bytes of a file without a byte-order mark; DataError if there is no such file or it is empty."""
    path = Path(path)
    if not path.is_file():
        problem = "expected a file, found a folder" if path.is_dir() else "file not found"
        raise DataError(located(problem, file=path, fix="pass the path of a COCO or LVIS annotation file"))
    if not path.stat().st_size:
        raise DataError(located("the file is empty", file=path, fix="restore the file, or download it again"))
    try:
        handle = path.open("rb")
    except OSError as error:
        raise DataError(located(f"cannot be read: {error.strerror}", file=path)) from error
    with handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        whole = memoryview(mapping)
        data = whole[len(_BYTE_ORDER_MARK) :] if mapping[:3] == _BYTE_ORDER_MARK else whole
        try:
            yield data
        finally:
            data.release()
            whole.release()


def _check_encoding(path: str | Path, data: memoryview) -> None:
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    for low in range(0, len(data), tuning.JSON_READ_BYTES):
        pending = len(decoder.getstate()[0])
        chunk = data[low : low + tuning.JSON_READ_BYTES]
        try:
            decoder.decode(chunk, final=low + len(chunk) == len(data))
        except UnicodeDecodeError as error:
            position = _offset(path, data) + done - pending + error.start
            found = f"byte 0x{error.object[error.start]:02x}"
            fix = "convert the file to UTF-8, for example: iconv -f latin1 -t utf-8 OLD > NEW"
            problem = f"not UTF-8 at byte {position}"
            raise DataError(located(problem, file=path, expected="UTF-8", found=found, fix=fix)) from error
        finally:
            chunk.release()
        done += tuning.JSON_READ_BYTES


def _syntax_error(path: str | Path, data: memoryview, problem: str) -> str:
    match = _POSITION.search(problem)
    if match is None:  # the end of the file is missing
        problem = "the JSON ends before its last bracket is closed"
        return located(problem, file=path, fix="the file is truncated or damaged: download it again")
    position = int(match.group(1))
    line = bytes(data[:position]).count(b"\n") + 1
    text = bytes(data[max(0, position - 20) : position + 20]).decode("utf-8", "replace")
    problem = f"{problem[: match.start()].strip()} at byte {_offset(path, data) + position}"
    return located(problem, file=path, line=line, found=text, fix=_FIX)


def _offset(path: str | Path, data: memoryview) -> int:
    """Bytes of the file before `data`."""
    return os.path.getsize(path) - len(data)
