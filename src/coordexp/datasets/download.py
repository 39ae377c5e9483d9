"""Stage `download`: provide one split of a dataset, and write its manifest.

The dataset's format says which files a split reads. They come from the user's own folder (`root`) or are downloaded to
the raw folder; a generated dataset reads none.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from coordexp.datasets.derive_splits import derive_split
from coordexp.datasets.fetch import download_of, fetch_files
from coordexp.datasets.formats import (
    DatasetFormat,
    SplitFiles,
    check_split,
    derived_splits,
    open_format,
    original_split,
    per_split_options,
)
from coordexp.datasets.source import Source, read_source
from coordexp.runtime.errors import CoordExpError, DataError, located
from coordexp.runtime.http_download import Policy
from coordexp.runtime.io import sha256_file, write_json


def provide(
    dataset: str,
    entry: Mapping[str, Any],
    split: str,
    raw_dir: str | Path,
    manifest: str | Path,
    *,
    policy: Policy = Policy(),  # noqa: B008 -- frozen
) -> Source:
    """Provide `split` of a dataset and write its Source to `manifest`.

    `entry` is the dataset's entry under `datasets:`. Downloads, generated images and converted annotations go to
    `raw_dir`, and the manifest names them by relative paths; files below the user's own `root` are read in place and
    named by absolute paths. Only what the split needs is touched.
    ConfigError for an invalid entry, DataError for a folder that lacks a file, DownloadError for a failed download.
    """
    raw_dir, manifest = Path(raw_dir), Path(manifest)
    dataset_format = open_format(dataset, entry)
    check_split(dataset_format, split)
    root = _root(dataset_format)
    original_name = original_split(dataset_format, split)
    files = dataset_format.files(original_name)
    if root is None and (needed := [*files.annotations, *files.image_dirs]):
        downloads = getattr(dataset_format.options, "downloads", None) or {}
        per_split = [getattr(dataset_format.options, name) for name in per_split_options(dataset_format.Options)]
        fetch_files(dataset, downloads, needed, [*needed, *_strings(per_split)], raw_dir, policy)
    folder = root or raw_dir
    _check_files_exist(dataset_format, files, folder)
    with _one_writer(dataset_format, original_name, raw_dir):
        source = dataset_format.provide(original_name, folder, raw_dir)
    source = derive_split(dataset_format, split, source, raw_dir)
    original = [path.resolve() for path in dataset_format.original_files(original_name, folder)]
    if original and [Path(source.annotations)] != original:
        source = msgspec.structs.replace(source, original_sha256=annotations_sha256(original))
    source = _with_relative_paths(source, manifest.parent, root)
    write_json(manifest, source)
    return source


def options_for_split(dataset: str, entry: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The part of a dataset's entry that decides the result of providing `split`.

    Values for other splits are left out, unless they come from the same download.
    """
    dataset_format = open_format(dataset, entry)
    original = original_split(dataset_format, split)
    downloads = entry.get("downloads") or {}
    per_split = {name: entry.get(name) or {} for name in per_split_options(dataset_format.Options)}

    def downloads_of(value: Any) -> set[str]:
        return {key for path in _strings(value) if (key := download_of(path, downloads))}

    used = {key for values in per_split.values() for key in downloads_of(values.get(original))}
    options = dict(entry)
    for name, values in per_split.items():
        options[name] = {k: value for k, value in values.items() if k == original or downloads_of(value) & used}
    derived = entry.get("derived_splits") or {}
    if derived:
        related = {name for name, d in derived_splits(dataset_format).items() if d.source == original}
        options["derived_splits"] = {name: value for name, value in derived.items() if name in related}
    if downloads:
        options["downloads"] = {path: downloads[path] for path in downloads if path in used}
    return options


def local_annotations_sha256(dataset: str, entry: Mapping[str, Any], split: str, manifest: str | Path) -> str | None:
    """SHA-256 of the annotations of `split` below the user's own `root`; None for any other dataset.

    Files that have not been touched since `manifest` was written are not read again, and if they are missing, the hash
    in the manifest is returned. Both times of a file count: `mv` and `cp -p` keep its modification time.
    """
    if not entry.get("root"):
        return None
    dataset_format, manifest = open_format(dataset, entry), Path(manifest)
    check_split(dataset_format, split)
    root = _root(dataset_format)
    paths = dataset_format.original_files(original_split(dataset_format, split), root)
    recorded = _recorded_sha256(manifest, paths)
    exist = all(path.exists() for path in paths)
    if exist and (recorded is None or any(_changed_since(path, manifest) for path in paths)):
        return annotations_sha256(paths)
    return recorded


def annotations_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of a file, or of the names and contents of several files and folders."""
    if len(paths) == 1 and paths[0].is_file():
        return sha256_file(paths[0])
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent)}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _root(dataset_format: DatasetFormat) -> Path | None:
    """The user's own folder, resolved; None if the files are downloaded or generated."""
    root = getattr(dataset_format.options, "root", None)
    return Path(root).resolve() if root else None


def _one_writer(dataset_format: DatasetFormat, original: str, raw_dir: Path) -> contextlib.AbstractContextManager:
    """A lock while a split is provided that several splits are derived from, in jobs that run at the same time."""
    if not any(derived.source == original for derived in derived_splits(dataset_format).values()):
        return contextlib.nullcontext()
    raw_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(raw_dir / f".{original}.lock")


def _strings(value: Any) -> list[str]:
    """All text in an option's value: the paths in it, and perhaps some other words."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for item in items for text in _strings(item)]


def _recorded_sha256(manifest: Path, paths: Sequence[Path]) -> str | None:
    """The hash of the user's annotations at `paths` in a manifest; None if it is missing, damaged or of other files."""
    try:
        source = read_source(manifest)
    except CoordExpError:
        return None
    if source.original_sha256 is not None:
        return source.original_sha256
    return source.annotations_sha256 if [source.annotations] == [str(path) for path in paths] else None


def _changed_since(path: Path, manifest: Path) -> bool:
    stat = manifest.stat()
    written = min(stat.st_mtime_ns, stat.st_ctime_ns)  # the modification time may lie in the future
    files = (path, *path.rglob("*")) if path.is_dir() else (path,)
    return written > time.time_ns() or any(
        max(s.st_mtime_ns, s.st_ctime_ns) >= written for s in (file.stat() for file in files)
    )


def _check_files_exist(dataset_format: DatasetFormat, files: SplitFiles, folder: Path) -> None:
    missing = [path for path in files.annotations if not (folder / path).exists()]
    missing += [path for path in files.image_dirs if not (folder / path).is_dir()]
    if missing:
        field = f"datasets.{dataset_format.dataset}.{'root' if _root(dataset_format) else 'downloads'}"
        fix = f"add the missing files, or correct the paths under datasets.{dataset_format.dataset}"
        raise DataError(
            located("files of the dataset are missing", file=folder, field=field, expected=missing, fix=fix)
        )


def _with_relative_paths(source: Source, base: Path, root: Path | None) -> Source:
    """The source with paths below `base`, the manifest's folder, relative to it, except those in the user's `root`."""

    def relative(path: str) -> str:
        local = root is not None and Path(path).is_relative_to(root)
        below = Path(path).is_relative_to(base.resolve()) and not local
        return Path(path).relative_to(base.resolve()).as_posix() if below else path

    image_dirs = [relative(folder) for folder in source.image_dirs]
    return msgspec.structs.replace(source, annotations=relative(source.annotations), image_dirs=image_dirs)
