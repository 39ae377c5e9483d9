"""Processes that outlive what started them: one writer at a time for an output, children that end with their parent."""

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
FULL_TEXTS = ("No space left", "os error 28", "Disk quota exceeded", "os error 122")  # where the number is lost
RESERVE = 64 * 1024  # bytes written to a lock file, so that a log on a full disk can still say that it is full
FULL_BELOW = 1 << 20  # libraries that hide the error of a full disk leave less than this


@contextlib.contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Be the only process at work on `output`; wait for another one, such as the orphan of a killed Snakemake.

    The lock is a hidden file beside the output, named after it, that child processes inherit: it is free when the
    last of them has ended, however that came about. It holds some space back for the message of a full disk.
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
    """Descriptor of the lock file at `path`, held; not of one that its last holder has just removed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).split(b"\n")[0].decode(errors="replace").strip("\0")
            print(f"{path}: process {holder} is at work on this; waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks: go on without one
            print(f"{path}: no lock ({error.strerror})", file=sys.stderr, flush=True)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Descriptor of the lock file at `path`, held, which any user of the machine may hold; None while another one does.

    It stays with this process unless it is made inheritable. The file remains.
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
    """End this process within a second of its parent's end: a killed job leaves nothing that goes on writing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def full_disk(folder: Path, error: BaseException | None = None, otherwise: str = "") -> str:
    """The message of a full disk; `otherwise` is what helps beside free space."""
    why = f": {error}" if error is not None else ""
    fix = f"free some space{otherwise} and give the same command again: what is finished is kept"
    return located(f"the disk is full{why}", file=folder, fix=fix)


def disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether `error` is that of a full disk, or `folder` lies on one."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(text in str(error) for text in FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(folder).free < FULL_BELOW
