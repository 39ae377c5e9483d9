"""Stage `download`: make one split of a data set available and say where it lies.

Three ways, by the data set's entry in the configuration: generated (`format: shapes`), a folder of
the user's own (`root`), or downloads into the raw folder. Only what the split needs is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import msgspec

from coordexp.datasets import shapes
from coordexp.datasets.archive import extract
from coordexp.records import Source
from coordexp.runtime.errors import ConfigError, DataError, DownloadError, located
from coordexp.runtime.http_download import Policy, fetch
from coordexp.runtime.io import read_json, sha256_file, write_json

PARALLEL = 4
LOCK_FILE = "downloads.lock.json"


class Download(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `downloads`: where a file or folder of the data set comes from.

    size is in bytes, sha256 in hex; both are of the file behind the URL (the zip archive, if it is one).
    """

    url: str
    size: int | None = None
    sha256: str | None = None


def provide(
    name: str,
    dataset: dict,
    split: str,
    raw_dir: str | Path,
    manifest: str | Path,
    *,
    policy: Policy = Policy(),  # noqa: B008 -- frozen
) -> Source:
    """Make `split` of data set `name` available and write its Source to `manifest`.

    `dataset` is the entry under `data:`. Downloads and generated data go to `raw_dir`, with paths
    in the manifest relative to it; paths of a user's own `root` are absolute and nothing is copied.
    SHA-256 of every download is checked against the configuration, or recorded in
    `raw_dir/downloads.lock.json` once it is in its place and enforced from then on.
    ConfigError for an entry that does not fit, DataError for a folder that lacks something,
    DownloadError for a download that fails, naming what to put where instead.
    """
    raw_dir, manifest = Path(raw_dir), Path(manifest)
    if dataset.get("format") == "shapes":
        source = shapes.generate(shapes.options_for(dataset, split), split, raw_dir)
        source = msgspec.structs.replace(source, dataset=name)
        root = raw_dir
    else:
        needed = _needed(name, dataset, split)
        root = Path(dataset["root"]).resolve() if dataset.get("root") else raw_dir
        if not dataset.get("root"):
            _download(name, dataset, needed, raw_dir, policy)
        _check_present(name, needed, root, own=bool(dataset.get("root")))
        annotations, *image_dirs = needed
        source = Source(name, split, dataset["format"], annotations, image_dirs, sha256_file(root / annotations))
    located_source = _relative_to(source, root, manifest.parent, own=bool(dataset.get("root")))
    write_json(manifest, located_source)
    return located_source


def own_entry(dataset: dict, split: str) -> dict:
    """The part of a data set's entry that providing `split` reads: other splits only where they share a download."""
    others = {"train", "val"} - {split}
    if dataset.get("format") == "shapes":
        return {key: value for key, value in dataset.items() if key not in others}
    entries = dataset.get("downloads") or {}
    listed = {key: dataset.get(key) or {} for key in ("annotations", "image_dirs")}

    def owners(key: str, name: str) -> set[str]:
        paths = [listed[key][name]] if key == "annotations" else listed[key][name]
        return {owner for path in paths if (owner := _owner(path, entries)) is not None}

    used = {owner for key, splits in listed.items() if split in splits for owner in owners(key, split)}
    for key, splits in listed.items():
        listed[key] = {name: splits[name] for name in splits if name == split or owners(key, name) & used}
    own = {**dataset, **{key: value for key, value in listed.items() if key in dataset}}
    return own | ({"downloads": {target: entries[target] for target in entries if target in used}} if entries else {})


def own_annotations(dataset: dict, split: str, manifest: str | Path) -> str | None:
    """SHA-256 of the annotations of `split` below a `root` of the user's own; None for other data sets.

    A file that nothing has touched since its `manifest` was written is not read again, and where it is gone the
    manifest stands for it. `mv` and `cp -p` keep the time of the content, not that of the file's attributes.
    """
    if not dataset.get("root"):
        return None
    path, manifest = Path(dataset["root"], (dataset.get("annotations") or {}).get(split, "")).resolve(), Path(manifest)
    recorded = _recorded_annotations(manifest, path)
    if path.is_file() and (recorded is None or _touched_since(path, manifest)):
        return sha256_file(path)
    return recorded


def _recorded_annotations(manifest: Path, path: Path) -> str | None:
    """The hash of the annotations at `path` in a manifest; None where it is missing, damaged or of another file."""
    try:
        source = msgspec.convert(read_json(manifest), Source)
    except (DataError, msgspec.ValidationError):
        return None
    return source.annotations_sha256 if source.annotations == str(path) else None


def _touched_since(path: Path, manifest: Path) -> bool:
    times = path.stat()
    return max(times.st_mtime_ns, times.st_ctime_ns) >= manifest.stat().st_mtime_ns


def _needed(name: str, dataset: dict, split: str) -> list[str]:
    """Annotation file and image folders of `split`, relative to the data set's root."""
    if dataset.get("format") not in ("coco", "lvis"):
        found = dataset.get("format")
        raise ConfigError(
            located("unknown format", field=f"data.{name}.format", expected="coco, lvis or shapes", found=found)
        )
    for key in ("annotations", "image_dirs"):
        if split not in dataset.get(key, {}):
            fix = f"add data.{name}.{key}.{split}, or ask for another split (data.splits for the data as a whole)"
            found = sorted(dataset.get(key, {}))
            raise ConfigError(
                located("no such split", field=f"data.{name}.{key}", expected=split, found=found, fix=fix)
            )
    return [dataset["annotations"][split], *dataset["image_dirs"][split]]


def _relative_to(source: Source, root: Path, base: Path, own: bool) -> Source:
    """The source with paths as the manifest in `base` needs them."""

    def place(path: str) -> str:
        full = (root / path).resolve()
        return str(full) if own else _walk(full, base.resolve())

    image_dirs = [place(folder) for folder in source.image_dirs]
    return msgspec.structs.replace(source, annotations=place(source.annotations), image_dirs=image_dirs)


def _walk(full: Path, base: Path) -> str:
    """`full` relative to `base` where it lies inside or beside it, absolute otherwise."""
    try:
        return full.relative_to(base).as_posix()
    except ValueError:
        return str(full)


def _check_present(name: str, needed: list[str], root: Path, own: bool) -> None:
    annotations, *image_dirs = needed
    missing = [annotations] if not (root / annotations).is_file() else []
    missing += [folder for folder in image_dirs if not (root / folder).is_dir()]
    if missing:
        key = f"data.{name}.root" if own else f"data.{name}.downloads"
        fix = f"put there what is missing, or correct data.{name}.annotations and data.{name}.image_dirs"
        raise DataError(located("missing in this folder", file=root, field=key, expected=missing, fix=fix))


def _download(name: str, dataset: dict, needed: list[str], raw_dir: Path, policy: Policy) -> None:
    """Fetch and unpack what is missing of `needed`, several at once; processes wait for each other."""
    entries = dataset.get("downloads") or {}
    every = {*dataset["annotations"].values(), *(p for paths in dataset["image_dirs"].values() for p in paths)}
    plan: dict[str, list[str]] = {}
    for path in needed:
        owner = _owner(path, entries)
        if owner is not None:  # one archive may hold the files of other splits too: take them while it is here
            plan[owner] = sorted(p for p in every if _owner(p, entries) == owner)
        elif not (raw_dir / path).exists():
            fix = f"put it at {raw_dir / path}, or set data.{name}.root to a folder that has it"
            raise ConfigError(
                located("nothing says where to get this", field=f"data.{name}.downloads", found=path, fix=fix)
            )
    works = [partial(_provide_one, name, t, entries[t], paths, raw_dir, policy) for t, paths in plan.items()]
    errors = [error for error in _at_once(works) if error is not None]
    for error in errors:
        if not isinstance(error, DownloadError):
            raise error
    if errors:
        places = ", ".join(str(raw_dir / path) for path in needed)
        advice = f"without a network: put the data at {places}, or set data.{name}.root to a folder of yours that has"
        raise DownloadError("\n".join([*map(str, errors), f"  -> {advice} {', '.join(needed)}"]))


def _at_once(works: list[Callable[[], None]]) -> list[BaseException | None]:
    """The error of each, a few at a time, in threads that end with the process: Ctrl-C does not wait for them."""
    errors: list[BaseException | None] = [None] * len(works)
    free = threading.Semaphore(PARALLEL)

    def attempt(n: int) -> None:
        with free:
            try:
                works[n]()
            except BaseException as error:
                errors[n] = error

    threads = [threading.Thread(target=attempt, args=(n,), daemon=True) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def _owner(path: str, entries: dict) -> str | None:
    """The entry of `downloads` that `path` is, or lies in; the innermost one."""
    owners = [t for t in entries if path == t or path.startswith(t.rstrip("/") + "/")]
    return max(owners, key=len, default=None)


def _provide_one(name: str, target: str, entry: dict, paths: list[str], raw_dir: Path, policy: Policy) -> None:
    """One entry of `downloads`: the wanted `paths` of it, unless they are there already."""
    try:
        download = msgspec.convert(entry, Download)
    except msgspec.ValidationError as error:
        raise ConfigError(located(str(error), field=f"data.{name}.downloads.{target}")) from error
    work = raw_dir / ".downloads"
    work.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(target.encode()).hexdigest()[:12]
    file_name = PurePosixPath(urlsplit(download.url).path).name or "download"
    is_archive = file_name.endswith(".zip")
    place = raw_dir / target
    # while this is there, the work is unfinished; a plain file's lies beside its place, on the same disk
    fetched = work / f"{key}-{file_name}" if is_archive else place.with_name(f".{place.name}.fetched")
    with _exclusive(work / f"{key}.lock"):
        begun = work / f"{key}.begun"  # unpacking has begun and may be unfinished
        receipt = work / f"{key}.json"
        done = read_json(receipt) if receipt.exists() else None
        replaced = done is not None and done["url"] != download.url
        unfinished = replaced or begun.exists() or fetched.exists()
        known = done is None or set(paths) <= set(done["paths"])
        if not unfinished and known and all((raw_dir / p).exists() for p in paths):
            return  # fetched before, or put there by the user
        found = _fetched(download, fetched, raw_dir, policy)
        if is_archive:
            begun.touch()
            wanted = [(raw_dir / p).relative_to(place.parent).as_posix() for p in paths]
            extract(fetched, place.parent, wanted, again=replaced)
        _record(raw_dir, download.url, found)
        write_json(receipt, {"url": download.url, "paths": paths})
        begun.unlink(missing_ok=True)
        fetched.unlink() if is_archive else fetched.replace(place)


def _fetched(download: Download, to: Path, raw_dir: Path, policy: Policy) -> str:
    """SHA-256 of what lies at `to`, fetched unless it is there."""
    if to.exists():
        return sha256_file(to)
    promised = download.sha256 or _recorded(raw_dir).get(download.url)
    return fetch(download.url, to, size=download.size, sha256=promised, policy=policy)


def _recorded(raw_dir: Path) -> dict[str, str]:
    path = raw_dir / LOCK_FILE
    return read_json(path) if path.exists() else {}


def _record(raw_dir: Path, url: str, sha256: str) -> None:
    with _exclusive(raw_dir / ".downloads" / "lockfile.lock"):
        write_json(raw_dir / LOCK_FILE, dict(sorted({**_recorded(raw_dir), url: sha256}.items())))


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file: train and val may be provided by two processes at once."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
