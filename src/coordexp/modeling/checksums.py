"""SHA-256 of every file of a checkpoint: `SHA256SUMS`, which is verified whenever the folder is read.

The format is that of coreutils: `sha256sum -c SHA256SUMS` checks a folder without CoordExp. Folders without the file,
such as those of a model hub, are not checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from coordexp.modeling.checkpoint_safety import TRAINING_STATE
from coordexp.runtime import io
from coordexp.runtime.errors import ModelError, located
from coordexp.runtime.output_guard import MARKER

FILE_NAME = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\n]+)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_REMAKE = "create it again: delete the folder and rerun the stage that wrote it"


def write_checksums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write SHA256SUMS for all files of `folder`, the last step of publishing it.

    `known` holds hashes by file name that were computed while the files were written or compared.
    """
    known = known or {}
    names = sorted(_names(folder))
    found = dict(known) | sha256_of([folder / name for name in names if name not in known], folder)
    io.write_text(folder / FILE_NAME, "".join(f"{found[name]}  {name}\n" for name in names))


def verify_checksums(folder: str | Path, *only: str) -> dict[str, str]:
    """SHA-256 by file name of a published folder; ModelError that names a file that is not the one published.

    Empty for a folder without SHA256SUMS. A large checkpoint is read once, its files in parallel. `only` limits the
    check to some of the listed files.
    """
    folder = Path(folder)
    listed = read_checksums(folder)
    if only:
        listed = {name: digest for name, digest in listed.items() if name in only}
    if not listed:
        return {}
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise ModelError(located("file of a published checkpoint is missing", file=folder / missing[0], fix=_REMAKE))
    unknown = [] if only else [n for n in sorted(_names(folder) - listed.keys()) if n.endswith(_WEIGHTS)]
    # What other machines save to resume may not have been visible yet when a checkpoint of training was listed.
    unknown = [name for name in unknown if not any(fnmatch(name, pattern) for pattern in TRAINING_STATE)]
    if unknown:
        problem = f"weights that are not listed in {FILE_NAME}"
        raise ModelError(located(problem, file=folder / unknown[0], fix="remove the file"))
    for name, found in sha256_of([folder / name for name in listed], folder).items():
        if found != listed[name]:
            problem = "the file is damaged or has changed since it was published"
            fix = f"{_REMAKE}; if you changed it on purpose, delete its line in {FILE_NAME}"
            expected = listed[name]
            raise ModelError(
                located(problem, file=folder / name, field="sha256", expected=expected, found=found, fix=fix)
            )
    return listed


def read_checksums(folder: str | Path) -> dict[str, str]:
    """The recorded SHA-256 by file name, empty without SHA256SUMS; ModelError for an invalid file."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return {}
    listed = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8", errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            raise ModelError(located("invalid line, expected a SHA-256 and a file name", file=path, line=number))
        listed[match[2]] = match[1]
    if not listed:
        raise ModelError(located("the file is empty", file=path, fix=_REMAKE))
    return listed


def sha256_of(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """SHA-256 of files by their names within `folder`; largest first, in as many threads as there are cores."""
    largest_first = sorted(files, key=lambda file: -file.stat().st_size)
    with ThreadPoolExecutor(max(1, min(len(os.sched_getaffinity(0)), 8))) as threads:
        found = dict(zip(largest_first, threads.map(io.sha256_file, largest_first), strict=True))
    return {file.relative_to(folder).as_posix(): digest for file, digest in found.items()}


def _names(folder: Path) -> set[str]:
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return files - {FILE_NAME, MARKER}
