"""Files of a dataset from the web: what is missing is downloaded, verified and unpacked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from filelock import FileLock

from coordexp.datasets.archive import extract
from coordexp.runtime import tuning
from coordexp.runtime.errors import ConfigError, DownloadError, located
from coordexp.runtime.http_download import Policy, check_url, fetch, url_key
from coordexp.runtime.io import read_json, sha256_file, write_json

LOCK_FILE = "downloads.lock.json"


class DownloadEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a file or folder of a dataset comes from."""

    url: Annotated[str, msgspec.Meta(description="URL of the file, or of a zip archive that contains it")]
    size: Annotated[int | None, msgspec.Meta(description="size in bytes of the file behind the URL, if known")] = None
    sha256: Annotated[str | None, msgspec.Meta(description="SHA-256 (hex) of the file behind the URL, if known")] = None
    archive_folder: Annotated[
        str,
        msgspec.Meta(
            description="folder in the zip archive that corresponds to the parent folder of the path (`.`: the root)"
        ),
    ] = ""


def fetch_files(
    dataset: str,
    entries: Mapping[str, DownloadEntry],
    needed: Sequence[str],
    related: Sequence[str],
    raw_dir: Path,
    policy: Policy,
) -> None:
    """Download and unpack what is missing of `needed`, several files at once; processes wait for each other.

    `entries` are the dataset's `downloads`. `related` are the paths of every split: an archive that holds files of
    several splits is unpacked once for all of them. The SHA-256 of a download is checked against its entry, or
    recorded in `raw_dir/downloads.lock.json` at the first download and enforced from then on.
    ConfigError if no entry provides a missing path; DownloadError for a failed download.
    """
    paths: dict[str, list[str]] = {}
    for path in needed:
        target = download_of(path, entries)
        if target is not None:
            paths[target] = sorted({p for p in related if download_of(p, entries) == target})
        elif not (raw_dir / path).exists():
            fix = f"put it at {raw_dir / path}, or set datasets.{dataset}.root to a folder that has it"
            field = f"datasets.{dataset}.downloads"
            raise ConfigError(located("no download provides this path", field=field, found=path, fix=fix))
    errors = _run_parallel([partial(_fetch_entry, t, entries[t], paths[t], raw_dir, policy) for t in paths])
    for error in errors:
        if not isinstance(error, DownloadError):
            raise error
    if errors:
        targets = ", ".join(str(raw_dir / path) for path in needed)
        advice = (
            f"without network access: put the data at {targets}, or set datasets.{dataset}.root to a folder that has"
        )
        raise DownloadError("\n".join([*map(str, errors), f"  -> {advice} {', '.join(needed)}"]))


def download_of(path: str, entries: Mapping[str, object]) -> str | None:
    """The key of `downloads` that provides `path`: the path itself, or the innermost folder that contains it.

    The key `.` provides the whole dataset.
    """
    targets = [t for t in entries if t == "." or path == t or path.startswith(t.rstrip("/") + "/")]
    return max(targets, key=len, default=None)


def _run_parallel(tasks: Sequence[Callable[[], None]]) -> list[BaseException]:
    """The exceptions of the tasks, run in daemon threads, which do not delay Ctrl-C."""
    errors: list[BaseException | None] = [None] * len(tasks)
    slots = threading.Semaphore(tuning.PARALLEL_DOWNLOADS)

    def attempt(n: int) -> None:
        with slots:
            try:
                tasks[n]()
            except BaseException as error:
                errors[n] = error

    threads = [threading.Thread(target=attempt, args=(n,), daemon=True) for n in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [error for error in errors if error is not None]


def _fetch_entry(target: str, entry: DownloadEntry, paths: Sequence[str], raw_dir: Path, policy: Policy) -> None:
    """Provide `paths`, which entry `target` of `downloads` holds, unless they exist.

    Three files in `raw_dir/.downloads` record the progress: the archive itself until it is unpacked, `.begun` while
    unpacking may be incomplete, and a receipt of what has been provided. A plain file is downloaded next to its final
    path, on the same disk, and renamed last.
    """
    work = raw_dir / ".downloads"
    work.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(target.encode()).hexdigest()[:12]
    check_url(entry.url)
    file_name = PurePosixPath(urlsplit(entry.url).path).name or "download"
    is_archive = file_name.endswith(".zip")
    final = raw_dir / target
    fetched = work / f"{key}-{file_name}" if is_archive else final.with_name(f".{final.name}.fetched")
    with FileLock(work / f"{key}.lock"):
        begun = work / f"{key}.begun"
        receipt = work / f"{key}.json"
        earlier = read_json(receipt) if receipt.exists() else None
        replaced = earlier is not None and earlier["url"] not in (entry.url, url_key(entry.url))
        unfinished = replaced or begun.exists() or fetched.exists()
        covered = earlier is None or set(paths) <= set(earlier["paths"])
        if not unfinished and covered and all((raw_dir / p).exists() for p in paths):
            _check_provided(entry, final, is_archive, earlier, raw_dir)
            return  # downloaded before, or put there by the user
        sha256 = _fetched_sha256(entry, fetched, raw_dir, policy)
        if is_archive:
            begun.touch()
            folder = raw_dir if target == "." else final.parent
            members = [(raw_dir / p).relative_to(folder).as_posix() for p in paths]
            extract(fetched, folder, members, overwrite=replaced, below=entry.archive_folder)
        _record_sha256(raw_dir, entry.url, sha256)
        size = fetched.stat().st_size
        files = {p: sha256_file(raw_dir / p) for p in paths if (raw_dir / p).is_file()} if is_archive else {}
        facts = {"sha256": sha256, "size": size, "files": files}
        write_json(receipt, {"url": url_key(entry.url), "paths": paths} | facts)
        begun.unlink(missing_ok=True)
        fetched.unlink() if is_archive else fetched.replace(final)


def _fetched_sha256(entry: DownloadEntry, target: Path, raw_dir: Path, policy: Policy) -> str:
    """SHA-256 of `target`, which is downloaded unless it exists."""
    recorded = _recorded_sha256(raw_dir)
    expected = entry.sha256 or recorded.get(url_key(entry.url)) or recorded.get(entry.url)
    if target.exists():
        found, size = sha256_file(target), target.stat().st_size
        if (expected or found).lower() == found and entry.size in (None, size):
            return found
        target.unlink()  # complete, but not what is expected: download it again
    return fetch(entry.url, target, size=entry.size, sha256=expected, policy=policy)


def _check_provided(entry: DownloadEntry, final: Path, is_archive: bool, receipt: dict | None, raw_dir: Path) -> None:
    """DownloadError if what an earlier run provided, or the user put there, is not what the entry or a lock expects."""
    recorded = _recorded_sha256(raw_dir)
    receipt = receipt or {}
    expected = {"sha256": entry.sha256 or recorded.get(url_key(entry.url)) or recorded.get(entry.url)}
    expected["size"] = entry.size
    if is_archive:
        found = {"sha256": receipt.get("sha256"), "size": receipt.get("size")}
    else:
        found = {"sha256": sha256_file(final) if expected["sha256"] else None, "size": final.stat().st_size}
    for field, value in expected.items():
        if None not in (value, found[field]) and str(value).lower() != str(found[field]):
            fix = f"delete {final} to download it again, or correct {field} in the configuration"
            facts = {"field": field, "expected": value, "found": found[field]}
            raise DownloadError(located("not the expected file", file=final, fix=fix, **facts))
    for path, sha256 in receipt.get("files", {}).items():
        if (raw_dir / path).is_file() and sha256_file(raw_dir / path) != sha256:
            fix = f"delete {raw_dir / path} to download it again, or set `root` of the dataset to use it"
            raise DownloadError(located("the file has changed since it was downloaded", file=raw_dir / path, fix=fix))


def _recorded_sha256(raw_dir: Path) -> dict[str, str]:
    path = raw_dir / LOCK_FILE
    return read_json(path) if path.exists() else {}


def _record_sha256(raw_dir: Path, url: str, sha256: str) -> None:
    with FileLock(raw_dir / ".downloads" / "lockfile.lock"):
        write_json(raw_dir / LOCK_FILE, dict(sorted({**_recorded_sha256(raw_dir), url_key(url): sha256}.items())))
