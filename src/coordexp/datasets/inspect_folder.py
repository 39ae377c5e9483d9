"""What a folder holds: its format, and the images, boxes, categories and possible problems of each split."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import ImageEntry
from coordexp.datasets.annotation_index import AnnotationColumns, AnnotationIndex, build_index, read_images
from coordexp.datasets.categories import load_categories
from coordexp.datasets.download import provide
from coordexp.datasets.folder_listing import FolderListing
from coordexp.datasets.formats import FORMATS, Proposal, known_splits, open_format
from coordexp.datasets.images import ImageError, find_image, open_image
from coordexp.datasets.source import load_source
from coordexp.geometry.boxes import looks_normalised
from coordexp.runtime.errors import ConfigError, CoordExpError, DataError, located, nearest

FEW_BOXES = 10
IMAGES_PER_READ = 10_000


class Choice(NamedTuple):
    """A format that can read a folder, and how."""

    format: str
    proposal: Proposal


class ImageFile(NamedTuple):
    """An image of a split: its name in the annotations, and the digest of its bytes and its size if it can be read."""

    name: str
    digest: bytes | None
    size: tuple[int, int] | None


class SplitFacts(msgspec.Struct):
    """Facts of one split. Arrays have one row per image or per box; sizes are in pixels.

    sizes: (width, height) as annotated, int64 [N, 2]. boxes_of: number of boxes of each image [N].
    box_sizes: square root of the area of each box, clipped to its image, float64 [M].
    fractions: the same as a fraction of the square root of the image's area.
    problem: why the split cannot be read; everything else is then empty.
    """

    split: str
    sizes: np.ndarray = msgspec.field(default_factory=lambda: np.zeros((0, 2), np.int64))
    boxes_of: np.ndarray = msgspec.field(default_factory=lambda: np.zeros(0, np.int64))
    box_sizes: np.ndarray = msgspec.field(default_factory=lambda: np.zeros(0))
    fractions: np.ndarray = msgspec.field(default_factory=lambda: np.zeros(0))
    categories: Counter[str] = msgspec.field(default_factory=Counter)
    files: list[ImageFile] = []
    missing: list[str] = []
    skipped: list[str] = []
    outside: int = 0
    without_area: int = 0
    normalised: int = 0
    problem: str | None = None


def choices(folder: str | Path, name: str | None = None) -> list[Choice]:
    """Every way to read a folder, only in the format `name` if given; ConfigError for an unknown format."""
    if name is not None and name not in FORMATS:
        raise ConfigError(located(f"unknown dataset format {name!r}{nearest(name, FORMATS.names())}", field="--format"))
    listing = FolderListing(folder)
    if not listing.files:
        raise ConfigError(located("the folder is empty", file=folder))
    found = []
    for format_name in [name] if name else FORMATS.names():
        found += [Choice(format_name, proposal) for proposal in FORMATS[format_name].detect(listing)]
    return found


def inspect(dataset: str, entry: Mapping[str, Any], workers: int = 1) -> list[SplitFacts]:
    """The facts of every split of a dataset, which its format reads as in rule `download`; images by their headers."""
    kind = FORMATS[entry["format"]]
    lenient = {"on_bad": "skip"} if "on_bad" in kind.Options.__struct_fields__ else {}
    splits = known_splits(open_format(dataset, entry))
    with tempfile.TemporaryDirectory(prefix="coordexp-init-") as scratch:
        return [_facts(dataset, {**entry, **lenient}, split, Path(scratch), workers) for split in splits]


def _facts(dataset: str, entry: Mapping[str, Any], split: str, scratch: Path, workers: int) -> SplitFacts:
    manifest = scratch / f"{split}.source.json"
    try:
        provide(dataset, entry, split, scratch / "raw", manifest)
        source = load_source(manifest)
        index = build_index(manifest.parent / source.annotations, folder=scratch)
        names = {category.id: category.name for category in load_categories(index.path, "skip", index.categories)}
    except CoordExpError as error:
        return SplitFacts(split, problem=str(error))
    facts = SplitFacts(split)
    facts.categories = Counter(dict.fromkeys(names.values(), 0))
    annotations = index.annotations_of(0, len(index))
    columns, counts = np.unique(annotations.categories, return_counts=True)
    for category_id, count in zip(columns.tolist(), counts.tolist(), strict=True):
        facts.categories[names.get(category_id, f"unknown category {category_id}")] += count
    facts.skipped = [f"{line.file}:{line.line or ''}: {line.reason}" for line in index.skipped]
    facts.skipped += [f"{element.id}: {element.problem}" for _, element in index.invalid]
    images = _images(index)
    _measure_boxes(facts, annotations, images)
    folders = [str(manifest.parent / folder) for folder in source.image_dirs]
    _read_files(facts, [image for image in images if image is not None], folders, workers)
    return facts


def _images(index: AnnotationIndex) -> list[ImageEntry | None]:
    found: list[ImageEntry | None] = []
    with open(index.path, "rb") as handle:
        for low in range(0, len(index), IMAGES_PER_READ):
            block = read_images(handle.fileno(), index, low, min(low + IMAGES_PER_READ, len(index)))
            found += [image if isinstance(image, ImageEntry) else None for image in block]
    return found


def _measure_boxes(facts: SplitFacts, annotations: AnnotationColumns, images: list[ImageEntry | None]) -> None:
    sizes = np.array([(i.width, i.height) if i else (0, 0) for i in images], np.int64).reshape(-1, 2)
    boxes, image_of = annotations.boxes, annotations.image_index
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    limits = sizes[image_of].astype(np.float64)
    facts.sizes, facts.boxes_of = sizes, np.diff(annotations.offsets)
    facts.without_area = int((boxes[:, 2:] <= 0).any(axis=1).sum())
    facts.outside = int(((low < -1) | (high > limits + 1)).any(axis=1).sum())
    facts.normalised = int(looks_normalised(boxes).sum())
    extent = np.clip(np.minimum(high, limits) - np.maximum(low, 0), 0, None)
    facts.box_sizes = np.sqrt(extent.prod(axis=1))
    facts.fractions = facts.box_sizes / np.maximum(np.sqrt(limits.prod(axis=1)), 1)


def _read_files(facts: SplitFacts, images: Iterable[ImageEntry], folders: list[str], workers: int) -> None:
    paths = []
    for image in images:
        try:
            folder, inner = find_image(image.path, folders, from_url=not image.file_name)
            paths.append((image.path, f"{folders[folder]}/{inner}"))
        except (ImageError, DataError):
            facts.missing.append(image.path)
    with ThreadPoolExecutor(max(workers, 1)) as pool:  # hashing and reading release the interpreter
        facts.files = list(pool.map(_read_file, paths, chunksize=1))


def _read_file(image: tuple[str, str]) -> ImageFile:
    name, path = image
    try:
        data = Path(path).read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        with open_image(io.BytesIO(data)) as header:
            return ImageFile(name, digest, header.size)
    except (OSError, ImageError):
        return ImageFile(name, None, None)


def possible_problems(splits: list[SplitFacts]) -> list[str]:
    """What looks wrong, one line per problem."""
    lines = [f"{facts.split}: cannot be read: {facts.problem}" for facts in splits if facts.problem]
    for facts in splits:
        unreadable = [file.name for file in facts.files if file.size is None]
        for problem, count, rest in (
            ("boxes within 0..1 (normalised instead of in pixels?)", facts.normalised, f" of {len(facts.box_sizes):,}"),
            ("boxes that extend beyond the image", facts.outside, ""),
            ("boxes without area", facts.without_area, ""),
            ("missing images", len(facts.missing), _example(facts.missing)),
            ("images that cannot be opened", len(unreadable), _example(unreadable)),
            ("unusable entries", len(facts.skipped), _example(facts.skipped)),
        ):
            if count:
                lines.append(f"{facts.split}: {problem}: {count:,}{rest}")
    return lines + _duplicates(splits) + _categories(splits)


def _example(names: list[str]) -> str:
    return f", for example {names[0]}" if names else ""


def _duplicates(splits: list[SplitFacts]) -> list[str]:
    """Images with the same bytes, within each split and across splits."""
    owners = [{file.digest: file.name for file in facts.files if file.digest} for facts in splits]
    lines = []
    for n, (facts, own) in enumerate(zip(splits, owners, strict=True)):
        repeated = sum(file.digest is not None for file in facts.files) - len(own)
        if repeated:
            lines.append(f"{facts.split}: copies of other images of the split: {repeated:,}")
        for other, theirs in zip(splits[n + 1 :], owners[n + 1 :], strict=True):
            shared = own.keys() & theirs.keys()
            if shared:
                example = min((own[digest], theirs[digest]) for digest in shared)
                same = f"{example[0]} and {example[1]}" if example[0] != example[1] else example[0]
                lines.append(f"{facts.split} and {other.split}: images in both: {len(shared):,}, for example {same}")
    return lines


def _categories(splits: list[SplitFacts]) -> list[str]:
    """Categories with few or no training boxes, and those that only other splits have."""
    train = next((facts for facts in splits if facts.split == "train"), splits[0] if splits else None)
    if train is None or train.problem:
        return []
    few = sorted((n, name) for name, n in train.categories.items() if 0 < n < FEW_BOXES)
    absent = [name for name, n in train.categories.items() if not n]
    lines = []
    if few:
        listed = ", ".join(f"{name} ({n})" for n, name in few[:10]) + (", ..." if len(few) > 10 else "")
        lines.append(f"{train.split}: categories with fewer than {FEW_BOXES} boxes: {len(few):,}, {listed}")
    if absent:
        lines.append(f"{train.split}: categories without boxes: {len(absent):,}{_example(absent)}")
    for facts in splits:
        unseen = [name for name, n in facts.categories.items() if n and not train.categories.get(name)]
        if facts is not train and unseen:
            lines.append(f"{facts.split}: categories without boxes in train: {len(unseen):,}{_example(unseen)}")
    return lines
