"""Zip archives: only wanted members, only what is missing, and never outside the target folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from coordexp.runtime.errors import DownloadError, located
from coordexp.runtime.estimates import require_space
from coordexp.runtime.progress import Progress


def extract(archive: Path, folder: Path, wanted: Sequence[str], *, again: bool = False) -> int:
    """Extract members called like, or lying under, a path of `wanted` into `folder`; returns how many they are.

    `wanted` are paths relative to `folder`. Members that are already there in full size are not
    written again unless `again` is set; each member appears whole or not at all, its CRC checked. DownloadError for an
    archive that is broken, has nothing wanted, or holds an unsafe name or a link.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            for member in members:
                _check(archive, member)
            chosen = [m for m in members if _under(m.filename, wanted)]
            if not chosen:
                found = sorted({m.filename.split("/")[0] for m in members})[:5]
                raise DownloadError(located("nothing wanted inside", file=archive, expected=list(wanted), found=found))
            missing = [m for m in chosen if again or not _is_there(folder / m.filename, m)]
            require_space(folder, sum(m.file_size for m in missing), f"extract {archive.name}")
            progress = Progress(f"extract {archive.name}", len(missing), "files")
            for member in missing:
                _write(opened, member, folder / member.filename)
                progress.add(1)
            if missing:
                progress.finish()
            return len(chosen)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        fix = "remove the file to fetch it again"
        raise DownloadError(located(f"not a sound zip archive: {error}", file=archive, fix=fix)) from error


def _check(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    windows = "\\" in member.filename or ":" in path.parts[0]
    problem = None
    if path.is_absolute() or ".." in path.parts or windows or "\0" in member.orig_filename:
        problem = "a name that leads out of the folder"
    elif kind not in (0, stat.S_IFREG):
        problem = "a link or special file"
    if problem:
        fix = "do not use this archive"
        raise DownloadError(located(f"unsafe archive: {problem}", file=archive, found=member.filename, fix=fix))


def _under(name: str, wanted: Sequence[str]) -> bool:
    return any(name == w or name.startswith(w.rstrip("/") + "/") for w in wanted)


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == member.file_size


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.part")  # the same each time: nothing is left once it is written again
    try:
        with scratch.open("wb") as out, opened.open(member) as data:
            shutil.copyfileobj(data, out, 1 << 20)
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
