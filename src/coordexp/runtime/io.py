"""Reading and writing: streams in, whole files out. A file under its final name is complete."""

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

_encoder = msgspec.json.Encoder()
_LOCK = ".lock"  # appended to the name of a scratch folder


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Write beside `path`, flush to disk, then rename: the file is whole or absent.

    With `durable=False` nothing waits for the disk: a machine that loses power may leave a damaged file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    encoding = None if "b" in mode else "utf-8"
    fd, name = _held(path, ".part")
    try:
        with open(fd, mode, encoding=encoding) as handle:
            yield handle
            if durable:
                handle.flush()
                os.fsync(handle.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if durable:
        _sync_dir(path.parent)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A scratch folder beside `path`, renamed to it on success and removed on failure.

    An older folder of that name is replaced only when the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    held, lock = _held(path, f".part{_LOCK}")  # there for as long as the scratch folder
    scratch = lock.with_name(lock.name.removesuffix(_LOCK))
    try:
        scratch.mkdir(mode=0o700)
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync_file(file)
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
    """Write structs or plain objects as JSON lines, whole or not at all; returns the count."""
    count = 0
    with atomic_open(path) as handle:
        for row in rows:
            handle.write(_encoder.encode(row))
            handle.write(b"\n")
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """Stream plain JSON values, one a line; DataError with file and line for a broken one."""
    for number, line in enumerate_lines(path):
        try:
            yield msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(located(f"not JSON: {error}", file=path, line=number)) from error


def read_json(path: str | Path) -> Any:
    """A whole JSON file; DataError naming it when it is missing or broken."""
    try:
        return msgspec.json.decode(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(located("file not found", file=path)) from error
    except msgspec.DecodeError as error:
        raise DataError(located(f"not JSON: {error}", file=path)) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON with stable key order kept as given; NaN is an error."""
    with atomic_open(path, "w") as handle:
        json.dump(msgspec.to_builtins(value), handle, indent=2, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def write_text(path: str | Path, text: str) -> None:
    """Write text, whole or not at all."""
    with atomic_open(path, "w") as handle:
        handle.write(text)


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces. The form that fingerprints compare."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _held(path: Path, suffix: str) -> tuple[int, Path]:
    """A new hidden file beside `path`, held by its descriptor for as long as this process, or a child, lives."""
    while True:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=suffix)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)  # waits for nothing but a sweep that found the file before it was held
        if os.path.exists(name):
            return fd, Path(name)
        os.close(fd)


def _sweep(path: Path) -> None:
    """Remove parts of `path` that killed processes left: those that nobody holds."""
    for suffix in (".part", f".part{_LOCK}"):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*{suffix}"):
            with contextlib.suppress(OSError):
                _remove_unheld(part)
    if path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
            shutil.rmtree(old, ignore_errors=True)


def _remove_unheld(part: Path) -> None:
    """Remove a file, or a folder with the lock beside it; OSError when a process holds it or it is just gone."""
    lock = part.with_name(part.name + _LOCK) if part.is_dir() else part
    try:
        fd = os.open(lock, os.O_RDWR)  # NFS gives no lock to a descriptor that may only read
    except FileNotFoundError:
        shutil.rmtree(part)  # its writer has just renamed it, or was of a version that made no lock beside it
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part != lock:
            shutil.rmtree(part)
        lock.unlink()
    finally:
        os.close(fd)


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
