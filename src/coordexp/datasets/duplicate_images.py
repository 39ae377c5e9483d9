"""Images with the same bytes: copies within a split, and images that two splits of a run share.

Each converted image gets a key, the start of the SHA-256 of its source file. The keys of a split are stored beside its
images, so that the conversions of other splits can compare theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from coordexp.datasets.disk_arrays import blocks, find_rows, repeated_rows, without_rows
from coordexp.datasets.image_provenance import MARKER
from coordexp.runtime.errors import LISTED_PROBLEMS, DataError, located
from coordexp.runtime.io import atomic_open, read_json

OnDuplicate = Literal["warn", "error", "ignore"]
KEYS = ".keys.npy"


class _Metadata(msgspec.Struct, gc=False):
    file_name: str


class _Record(msgspec.Struct, gc=False):
    metadata: _Metadata


_decode = msgspec.json.Decoder(_Record).decode


def content_key(file: str | Path) -> int:
    """64 bits of the hash of a file's bytes."""
    with open(file, "rb") as handle:
        return int.from_bytes(hashlib.file_digest(handle, "sha256").digest()[:8], "little")


def forget_keys(images_dir: Path) -> None:
    """Remove the keys of an earlier conversion."""
    (images_dir / KEYS).unlink(missing_ok=True)


def duplicate_images(keys: Sequence[int], images_dir: Path, records_jsonl: Path) -> dict[str, Any]:
    """Counts and examples of images that repeat an earlier one of the split, or one of another split; empty if none.

    `keys` are those of the records, in their order. They are stored in `images_dir` first, so that of two splits that
    are converted at the same time at least one sees the other.
    """
    own = np.array(keys, dtype=np.uint64)
    with atomic_open(images_dir / KEYS) as file:
        np.save(file, own)
    copies = repeated_rows(own)
    shared = {split: _rows_in(own, other, images_dir) for split, other in _other_splits(images_dir)}
    shared = {split: rows for split, rows in sorted(shared.items()) if len(rows)}
    listed = [rows[:LISTED_PROBLEMS].tolist() for rows in (copies, *shared.values())]
    originals = [int(np.argmax(own == own[i])) for i in listed[0]]
    names = _file_names(records_jsonl, {i for rows in (originals, *listed) for i in rows})
    found: dict[str, Any] = {}
    if len(copies):
        pairs = [[names[i], names[original]] for i, original in zip(listed[0], originals, strict=True)]
        found["copies"] = {"images": len(copies), "examples": pairs}
    for (split, rows), some in zip(shared.items(), listed[1:], strict=True):
        examples = [names[i] for i in some]
        found.setdefault("other_splits", {})[split] = {"images": len(rows), "examples": examples}
    return found


def _rows_in(keys: np.ndarray, other: np.ndarray, folder: Path) -> np.ndarray:
    """The rows of `keys` that `other` has too, int64 [K]; `folder` is for temporary files."""
    found = find_rows(without_rows(other, repeated_rows(other), folder), keys, folder)
    return np.concatenate([low + np.flatnonzero(rows >= 0) for low, rows in blocks(found)] or [[]])


def without_other_splits(statistics: dict[str, Any]) -> dict[str, Any]:
    """The statistics without the images of other splits, which depend on the split that was converted first."""
    copies = {key: value for key, value in statistics.get("duplicate_images", {}).items() if key == "copies"}
    kept = {key: value for key, value in statistics.items() if key != "duplicate_images"}
    return kept | ({"duplicate_images": copies} if copies else {})


def check_duplicates(statistics: dict[str, Any], on_duplicate: OnDuplicate, annotation_file: Path) -> None:
    """DataError for duplicates, if these are errors."""
    problems = [text for text, _ in described(statistics)]
    if problems and on_duplicate == "error":
        fix = "remove the copies, or set data.on_duplicate: warn"
        raise DataError(located("; ".join(problems), file=annotation_file, fix=fix))


def described(statistics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what is repeated, why it matters) of the duplicates in the statistics of a conversion."""
    found = statistics.get("duplicate_images", {})
    total = statistics["images"]["written"]
    if copies := found.get("copies"):
        names = ", ".join(f"{copy} = {original}" for copy, original in copies["examples"])
        text = f"{copies['images']:,} of {total:,} images have the same bytes as another one: {names}"
        yield text, "they count twice in training and evaluation"
    for split, shared in found.get("other_splits", {}).items():
        names = ", ".join(shared["examples"])
        text = f"{shared['images']:,} of {total:,} images are also in the split {split}: {names}"
        yield text, "a model is evaluated on images that it was trained on if one is the training split"


def _other_splits(images_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The keys of the other splits of the run that have been converted so far, by split."""
    for file in sorted(images_dir.resolve().parent.glob(f"*/{KEYS}")):
        if file.parent != images_dir.resolve():
            with contextlib.suppress(OSError, ValueError, EOFError, KeyError, DataError):  # being replaced
                yield read_json(file.parent / MARKER)["split"], np.load(file, mmap_mode="r")


def _file_names(records_jsonl: Path, rows: set[int]) -> dict[int, str]:
    """The names of the source images of these records."""
    if not rows:
        return {}
    with records_jsonl.open("rb") as lines:
        return {n: _decode(line).metadata.file_name for n, line in enumerate(lines) if n in rows}
