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

from coordexp.contract import CoordSpace, Record, check_record
from coordexp.errors import DataError, located

_record_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Write beside `path`, flush to disk, then rename: the file is whole or absent.

    With `durable=False` nothing waits for the disk: a machine that loses power may leave a damaged file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    encoding = None if "b" in mode else "utf-8"
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    _hold(fd)
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
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    held = os.open(scratch, os.O_RDONLY)
    _hold(held)
    try:
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
        os.close(held)
    _sync_dir(path.parent)


def read_records(path: str | Path, expect: CoordSpace) -> Iterator[Record]:
    """Stream the records of a JSONL file, refusing any that is broken or not in space `expect`."""
    for number, line in enumerate_lines(path):
        yield check_record(decode_record(line, path, number), expect, f"{path}:{number}")


def decode_record(line: bytes, path: str | Path, number: int) -> Record:
    """One line as a Record; DataError with file, line and field otherwise."""
    try:
        return _record_decoder.decode(line)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        fix = "see docs/record.md for the layout of a record"
        raise DataError(located(f"not a record: {error}", file=path, line=number, fix=fix)) from error


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


def _hold(fd: int) -> None:
    """Mark a part as being written for as long as this process, or a child, lives."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(path: Path) -> None:
    """Remove parts of `path` that killed processes left: those that nobody holds."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            fd = os.open(part, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            finally:
                os.close(fd)
    if path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
            shutil.rmtree(old, ignore_errors=True)


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
