"""A file that several threads write pieces to, past the page cache where the system lets them.

Finding pages for gigabytes of weights costs the system more processor time than the arithmetic on them. What covers
whole pages of the file therefore goes to the disk straight from the buffer it was made in (`O_DIRECT`); its address
must then lie within a page as its position does in the file: `aligned_buffer` gives such memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

import numpy as np

PAGE = max(4096, os.sysconf("SC_PAGE_SIZE"))  # a multiple of what any disk asks for

_kept = threading.local()


class Output:
    """A new file of `size` bytes; `write` may be called by any thread, `close` once and last."""

    def __init__(self, path: Path, size: int) -> None:
        self._cached = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.ftruncate(self._cached, size)
        self._direct = _open_direct(path)
        # The system lets one writer at a time at a file's cached pages; others would wait for it on the processor.
        self._turn = threading.Lock()

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write every byte of `data` at `position`; faster from memory that `aligned_buffer` gave for this position."""
        view = memoryview(data).cast("B")
        head = -position % PAGE
        if self._direct is None or len(view) < head + PAGE or (_address(view) - position) % PAGE:
            self._write_cached(position, view)
            return
        last = len(view) - (position + len(view)) % PAGE
        done = self._write_direct(position, view, head, last)
        self._write_cached(position, view[:head])
        self._write_cached(position + done, view[done:])

    def close(self, *, flush: bool = True) -> None:
        """Wait until all of it is on the disk, unless it is to be thrown away, and let the file go."""
        try:
            if flush:
                os.fsync(self._cached)
        finally:
            os.close(self._cached)
            if self._direct is not None:
                os.close(self._direct)

    def _write_direct(self, position: int, view: memoryview, done: int, last: int) -> int:
        """Write view[done:last], whole pages; returns how far it came before the file system refused, if it did."""
        while done < last:
            try:
                count = os.pwrite(self._direct, view[done:last], position + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return done
            if count % PAGE:
                return done + count // PAGE * PAGE
            done += count
        return done

    def _write_cached(self, position: int, view: memoryview) -> None:
        with self._turn:
            while view:
                count = os.pwrite(self._cached, view, position)
                view, position = view[count:], position + count


def aligned_buffer(name: str, size: int, position: int = 0) -> memoryview:
    """`size` bytes of memory of this thread to prepare what goes to `position` of an `Output`.

    Valid until the thread asks for `name` again: fresh memory costs more than the arithmetic.
    """
    kept = getattr(_kept, name, None)
    if kept is None or len(kept) < size + PAGE:
        kept = np.empty(size + PAGE, np.uint8)
        setattr(_kept, name, kept)
    begin = (position - kept.ctypes.data) % PAGE
    return memoryview(kept)[begin : begin + size]


def _address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def _open_direct(path: Path) -> int | None:
    with contextlib.suppress(AttributeError, OSError):  # a system, or a file system, without it
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    return None
