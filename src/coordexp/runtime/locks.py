"""One writer per output, processes that end with their parent, and full disks.

The locks here are plain `flock`s because child processes inherit them: Snakemake can be killed while the training that
it started still writes, and a lock that ended with the parent (filelock's does) would let a second one start. Locks
that are held by a single process use filelock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from coordexp.runtime.errors import located

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = (
    "No space left",
    "os error 28",
    "Disk quota exceeded",
    "os error 122",
)  # without its number
RESERVE = 64 * 1024  # bytes in a lock file, freed for the log when the disk is full
FULL_BELOW = 1 << 20  # free bytes: libraries that hide the error of a full disk leave less


@contextlib.contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Be the only process that works on `output`; waits for another one, such as the orphan of a killed Snakemake.

    The lock is a hidden file next to the output. Child processes inherit it, so it is released when the last of them
    ends, for whatever reason. The file reserves some space for the message of a full disk.
    """
    path = output.with_name(f".{output.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path)
    os.set_inheritable(descriptor, True)
    try:
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode().ljust(RESERVE, b"\0"), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Descriptor of the locked file at `path`; never of a file that its last holder has just removed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).split(b"\n")[0].decode(errors="replace").strip("\0")
            print(f"{path}: process {holder} is working on this; waiting for it to finish", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks: continue unlocked
            print(
                f"{path}: cannot lock the file ({error.strerror}); continuing without a lock",
                file=sys.stderr,
                flush=True,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Descriptor of the locked file at `path`, which any user of the machine may lock; None while another process does.

    Children inherit the lock only if the descriptor is made inheritable. The file is never removed.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.fchmod(descriptor, 0o666)  # whatever the umask
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    with contextlib.suppress(OSError):  # a full disk
        os.pwrite(descriptor, os.fsencode(f"{os.getpid()} in {Path.cwd()}"), 0)
    return descriptor


def end_with_parent() -> None:
    """End this process within a second after its parent ends, so that a killed job leaves no process that writes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def full_disk(folder: Path, error: BaseException | None = None, otherwise: str = "") -> str:
    """The message for a full disk; `otherwise` names an alternative to freeing space."""
    why = f": {error}" if error is not None else ""
    fix = f"free some space{otherwise} and run the same command again: finished work is kept"
    return located(f"the disk is full{why}", file=folder, fix=fix)


def disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether `error` was caused by a full disk, or the disk of `folder` is full."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(text in str(error) for text in FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(folder).free < FULL_BELOW
