"""Decoding of JPEGs by OpenCV, with the warnings of libjpeg: damage, as opposed to harmless oddities of a file."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from pathlib import Path
from typing import IO

import cv2
import numpy as np

_DAMAGE = re.compile(r"Corrupt JPEG data.*|Premature end.*|Inconsistent progression.*|Invalid SOS.*")
_WARNING = re.compile(rf"{_DAMAGE.pattern}|Warning: unknown JFIF.*|Unknown Adobe.*|Invalid component ID.*")
_BEFORE_END = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_PADDING = 2  # bytes after the last scan that some encoders write; more are left where a part of the scan was lost
_START_OF_SCAN, _COMMENT = 0xDA, 0xFE
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


def decode_jpeg(source: Path, mode: int) -> tuple[np.ndarray | None, str | None]:
    """(stored pixels, the warning of damage) of a JPEG file, as OpenCV decodes it with the flags `mode`.

    The pixels are None if OpenCV cannot decode the file. Bytes between the segments of the header, an unknown JFIF
    version or colour transform, and up to _PADDING bytes before the end are not damage: all pixels are there.
    """
    data = np.fromfile(source, dtype=np.uint8)
    pixels, warning = _decode(data, mode)
    if warning is None or _is_padding(warning):
        return pixels, None
    plain = _plain_header(data.tobytes())  # libjpeg reports its first warning only: one of the header hides the others
    _, warning = _decode(np.frombuffer(plain, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    damage = warning is not None and _DAMAGE.fullmatch(warning) and not _is_padding(warning)
    return pixels, warning if damage else None


def ends_with_marker(source: Path) -> bool:
    """Whether the last bytes of a file are the marker that ends a JPEG: then a decoder reaches the end of the scan.

    OpenCV does not report a scan that simply stops. It does report an end marker in the middle of a scan.
    """
    with open(source, "rb") as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - 2))
        return handle.read() == b"\xff\xd9"


def _is_padding(warning: str) -> bool:
    found = _BEFORE_END.fullmatch(warning)
    return found is not None and int(found[1]) <= _PADDING


def _decode(data: np.ndarray, mode: int) -> tuple[np.ndarray | None, str | None]:
    """(pixels, first warning); libjpeg writes it to stderr only, hence the redirection."""
    messages = _message_file(os.getpid())
    stderr = os.dup(2)
    try:
        os.dup2(messages.fileno(), 2)
        pixels = cv2.imdecode(data, mode | cv2.IMREAD_IGNORE_ORIENTATION)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    if not messages.seek(0, os.SEEK_END):
        return pixels, None
    messages.seek(0)
    found = _WARNING.search(messages.read().decode(errors="replace"))
    messages.seek(0)
    messages.truncate()
    return pixels, found.group() if found else None


@functools.lru_cache(maxsize=1)
def _message_file(_process: int) -> IO[bytes]:
    """A temporary file for the warnings of one process: forked processes share the position of an open file."""
    return tempfile.TemporaryFile(buffering=0)


def _plain_header(data: bytes) -> bytes:
    """The file without what is not needed to decode it as grey: comments, application data, bytes between segments."""
    out, at = bytearray(data[:2]), 2
    while (start := data.find(b"\xff", at)) >= 0 and start + 4 <= len(data):
        marker = data[start + 1]
        if marker == _START_OF_SCAN:
            return bytes(out) + data[start:]
        if marker in (0x00, 0xFF, *_WITHOUT_LENGTH):
            at = start + 1
            continue
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if not 0xE0 <= marker <= 0xEF and marker != _COMMENT:
            out += data[start:at]
    return data
