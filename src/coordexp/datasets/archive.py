"""Zip archives: extract selected members that are missing, never outside the target folder."""

from __future__ import annotations

import errno
import hashlib
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from coordexp.runtime.errors import DownloadError, located
from coordexp.runtime.estimates import require_space
from coordexp.runtime.progress import Progress

NAME_BYTES = 255  # longest file name of Linux file systems
# What zipfile raises for a damaged archive, besides OSError without a number; ValueError for a name that is not UTF-8.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError, struct.error)


def extract(archive: Path, folder: Path, paths: Sequence[str], *, overwrite: bool = False, below: str = "") -> int:
    """Extract the members named by `paths`, or below one of them, into `folder`; returns their number.

    `paths` are relative to `folder`, and to the folder `below` of the archive. A member that already exists in full
    size is skipped unless `overwrite` is set. A file appears only when it is complete and its CRC is right.
    DownloadError for a damaged archive, for one without a selected member, or for one with an unsafe name or a link.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.filename.endswith("/")]
            for member in members:
                _check_member(archive, member)
            _check_clashes(archive, members)
            prefix = f"{below.rstrip('/')}/" if below else ""
            inner = [m for m in members if m.filename.startswith(prefix)]
            selected = [(m, name) for m in inner if _is_selected(name := m.filename[len(prefix) :], paths)]
            if not selected:
                found = sorted({m.filename.split("/")[0] for m in members})[:5]
                problem = "the archive has none of the expected files"
                raise DownloadError(located(problem, file=archive, expected=[prefix + p for p in paths], found=found))
            missing = [(m, name) for m, name in selected if overwrite or not _exists(folder / name, m)]
            require_space(folder, sum(m.file_size for m, _ in missing), f"extract {archive.name}")
            progress = Progress(f"extract {archive.name}", len(missing), "files")
            for member, name in missing:
                _write(opened, member, folder / name)
                progress.add(1)
            if missing:
                progress.finish()
            return len(selected)
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is None:  # raised by bz2
            raise _damaged(archive, error) from error
        if error.errno not in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL):
            raise
        problem = f"a member cannot be written: {error.strerror}"
        raise DownloadError(located(problem, file=archive, found=error.filename)) from error


def _damaged(archive: Path, error: Exception) -> DownloadError:
    fix = "delete the file and run the same command again to download it again"
    return DownloadError(located(f"invalid or damaged zip archive: {error}", file=archive, fix=fix))


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    windows = "\\" in member.filename or ":" in "".join(path.parts[:1])
    problem = None
    if member.flag_bits & 1:
        fix = "unpack it manually with its password, and set `root` of the dataset to the folder"
        raise DownloadError(located("the archive is encrypted", file=archive, found=member.filename, fix=fix))
    if not path.parts or any(len(part.encode()) > NAME_BYTES for part in path.parts):
        problem = "an empty name, or one of more than 255 bytes"
    elif path.is_absolute() or ".." in path.parts or windows or "\0" in member.orig_filename:
        problem = "a name outside the target folder"
    elif kind not in (0, stat.S_IFREG):
        problem = "a link or special file"
    if problem:
        fix = "do not use this archive"
        raise DownloadError(located(f"unsafe archive: {problem}", file=archive, found=member.filename, fix=fix))


def _check_clashes(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """DownloadError if two members have the same name, or one is a folder of another."""
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        name = PurePosixPath(member.filename).as_posix()
        if name in files:
            raise DownloadError(located("two members of the archive have the same name", file=archive, found=name))
        files.add(name)
        parent = name.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    for name in sorted(files & folders)[:1]:
        raise DownloadError(located("a member of the archive is both a file and a folder", file=archive, found=name))


def _is_selected(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(path.rstrip("/") + "/") for path in paths)


def _exists(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == member.file_size


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.part"  # a fixed name: killed runs leave at most one
    if len(name.encode()) > NAME_BYTES:
        name = f".{hashlib.sha256(name.encode()).hexdigest()}.part"
    scratch = target.with_name(name)
    try:
        with scratch.open("wb") as out, opened.open(member) as data:
            shutil.copyfileobj(data, out, 1 << 20)
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
