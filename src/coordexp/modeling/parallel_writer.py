"""A file that several threads write to, bypassing the page cache where the system supports it.

Allocating page-cache pages for gigabytes of weights takes more CPU time than the arithmetic on the weights. Data that
covers full pages of the file is therefore written directly from its buffer (`O_DIRECT`). This requires that the offset
of the buffer within a memory page equals the offset of its file position within a page: use `aligned_buffer`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from pathlib import Path

import numpy as np

PAGE = max(4096, os.sysconf("SC_PAGE_SIZE"))  # a multiple of the block size of any disk

_kept = threading.local()


class Output:
    """A new file of `size` bytes; any thread may call `write`; `close` is called once, at the end.

    With `hashed`, the SHA-256 is computed while the file is written. Each byte must then be written exactly once, and a
    thread waits in `write` until all earlier bytes have been written, so pieces must be begun in order.
    """

    def __init__(self, path: Path, size: int, *, hashed: bool = False) -> None:
        self._digest = hashlib.sha256() if hashed else None
        self._digested, self._aborted, self._turn = 0, False, threading.Condition()
        self._cached = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.ftruncate(self._cached, size)
        self._direct = _open_direct(path)
        # The kernel serialises cached writes to a file; other threads would spin while they wait.
        self._lock = threading.Lock()

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `position`; fastest from an `aligned_buffer` for this position."""
        view = memoryview(data).cast("B")
        self._write(position, view)
        if self._digest is not None and len(view):
            self._update_digest(position, view)

    def abort(self) -> None:
        """Release threads that wait for a piece that will never be written."""
        with self._turn:
            self._aborted = True
            self._turn.notify_all()

    @property
    def sha256(self) -> str | None:
        """Hex SHA-256 of the bytes written so far, for a file that is hashed."""
        return None if self._digest is None else self._digest.hexdigest()

    def _update_digest(self, position: int, view: memoryview) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._aborted or self._digested == position)
        if not self._aborted:
            self._digest.update(view)  # without the lock: only the thread whose turn it is comes here
            with self._turn:
                self._digested += len(view)
                self._turn.notify_all()

    def _write(self, position: int, view: memoryview) -> None:
        head = -position % PAGE
        if self._direct is None or len(view) < head + PAGE or (_address(view) - position) % PAGE:
            self._write_cached(position, view)
            return
        last = len(view) - (position + len(view)) % PAGE
        done = self._write_direct(position, view, head, last)
        self._write_cached(position, view[:head])
        self._write_cached(position + done, view[done:])

    def close(self, *, flush: bool = True) -> None:
        """Flush the data to disk, unless the file will be discarded, and close the file."""
        try:
            if flush:
                os.fsync(self._cached)
        finally:
            os.close(self._cached)
            if self._direct is not None:
                os.close(self._direct)

    def _write_direct(self, position: int, view: memoryview, done: int, last: int) -> int:
        """Write the full pages view[done:last]; returns the end of what was written before the file system refused."""
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
        with self._lock:
            while view:
                count = os.pwrite(self._cached, view, position)
                view, position = view[count:], position + count


def aligned_buffer(name: str, size: int, position: int = 0) -> memoryview:
    """`size` bytes of thread-local memory, aligned for writing at `position` of an `Output`.

    The memory is reused by the thread's next call with the same `name`, because allocation would take longer than the
    arithmetic.
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
    with contextlib.suppress(AttributeError, OSError):  # not supported by the system or the file system
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    return None
