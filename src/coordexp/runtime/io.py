"""Reading and atomic writing of files: a file under its final name is complete."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from coordexp.runtime.errors import DataError, located

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last one for nesting that is too deep
_encoder = msgspec.json.Encoder()
_LOCK = ".lock"  # appended to the name of a scratch folder


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Write to a temporary file next to `path`, flush it to disk, then rename it: the file is complete or absent.

    With `durable=False` the data is not flushed: a power failure may leave a damaged file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    encoding = None if "b" in mode else "utf-8"
    fd, name = _locked_file(path, ".part")
    try:
        with open(fd, mode, encoding=encoding) as handle:
            yield handle
            if durable:
                handle.flush()
                os.fsync(handle.fileno())
        os.chmod(name, file_mode())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if durable:
        _sync_dir(path.parent)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A temporary folder next to `path`, renamed to it on success and removed on failure.

    An existing folder is replaced only when the new one is complete. Files get the permissions of the umask, except
    hard links.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    held, lock = _locked_file(path, f".part{_LOCK}")  # exists as long as the temporary folder
    scratch = lock.with_name(lock.name.removesuffix(_LOCK))
    try:
        scratch.mkdir(mode=0o700)
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync_file(file)
                if file.stat().st_nlink == 1:  # the permissions of a link are those of the original as well
                    os.chmod(file, file_mode())  # safetensors and tempfile create files that only the owner can read
        os.chmod(scratch, 0o777 & ~_umask())
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
        os.replace(scratch, path)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)
    _sync_dir(path.parent)


def enumerate_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes) of every line that is not blank."""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield number, line


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Write structs or plain values as JSON lines, atomically; returns the number of lines."""
    count = 0
    with atomic_open(path) as handle:
        for row in rows:
            handle.write(_encoder.encode(row))
            handle.write(b"\n")
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """Stream plain values from JSON lines; DataError with file and line for an invalid one."""
    for number, line in enumerate_lines(path):
        try:
            yield msgspec.json.decode(line)
        except NOT_JSON as error:
            raise DataError(located(f"not JSON: {error}", file=path, line=number)) from error


def read_json(path: str | Path) -> Any:
    """Content of a JSON file; DataError if it is missing or invalid."""
    try:
        return msgspec.json.decode(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(located("file not found", file=path)) from error
    except NOT_JSON as error:
        raise DataError(located(f"not JSON: {error}", file=path)) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON, atomically, with keys in the given order; NaN is an error."""
    with atomic_open(path, "w") as handle:
        json.dump(msgspec.to_builtins(value), handle, indent=2, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def write_text(path: str | Path, text: str) -> None:
    """Write text, atomically."""
    with atomic_open(path, "w") as handle:
        handle.write(text)


def canonical_json(value: Any) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces. Identities are hashes of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def home_is_writable() -> bool:
    """Whether programs can create their folders in the home folder, as far as `~/.config` shows."""
    config = Path.home() / ".config"
    try:
        config.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(config, os.W_OK)


def _locked_file(path: Path, suffix: str) -> tuple[int, Path]:
    """A new hidden file next to `path`, locked through its descriptor as long as this process or a child of it runs.

    The lock must be inherited, which filelock's are not: a child may continue to write after this process is killed."""
    while True:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=suffix)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)  # waits only for a cleanup that found the file before it was locked
        if os.path.exists(name):
            return fd, Path(name)
        os.close(fd)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left, that is, those that are not locked."""
    for suffix in (".part", f".part{_LOCK}"):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*{suffix}"):
            with contextlib.suppress(OSError):
                _remove_unlocked(part)
    if path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
            shutil.rmtree(old, ignore_errors=True)


def _remove_unlocked(part: Path) -> None:
    """Remove a file, or a folder and its lock file; OSError if a process holds the lock or the file does not exist."""
    lock = part.with_name(part.name + _LOCK) if part.is_dir() else part
    try:
        fd = os.open(lock, os.O_RDWR)  # NFS does not lock read-only descriptors
    except FileNotFoundError:
        shutil.rmtree(part)  # its writer has just renamed it
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part != lock:
            shutil.rmtree(part)
        lock.unlink()
    finally:
        os.close(fd)


def file_mode() -> int:
    """The permissions of a new file according to the umask."""
    return 0o666 & ~_umask()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
