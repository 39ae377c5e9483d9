"""Derived splits: a seeded part of the images of a split, by image or by group, becomes a split of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import Decode, ImageEntry, decode_elements
from coordexp.datasets.annotation_file import Id, check_annotation_file
from coordexp.datasets.disk_arrays import (
    ArrayFile,
    KeyFile,
    blocks,
    find_rows,
    keys_of,
    repeated_rows,
    same_kind,
    without_rows,
)
from coordexp.datasets.formats import DatasetFormat, DerivedSplit, derived_splits, original_split
from coordexp.datasets.json_spans import element_spans, read_spans
from coordexp.datasets.ordering import stable_hash
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import atomic_open, sha256_file

ELEMENTS_PER_READ = 10_000
ORIGINAL = -1
_NO_ELEMENTS = np.zeros((0, 2), np.int64)


class ImageFacts(msgspec.Struct, frozen=True):
    """What decides the split of an image: its id as text, the name of its file, and its entry if a key of it counts."""

    id: str
    path: str
    entry: Mapping[str, Any]


class _ImageId(msgspec.Struct, gc=False):
    image_id: Id


_decode_images = msgspec.json.Decoder(list[ImageEntry]).decode
_decode_image_ids = msgspec.json.Decoder(list[_ImageId]).decode
_decode_maps = msgspec.json.Decoder(list[dict[str, Any]]).decode


def derive_split(dataset_format: DatasetFormat, split: str, source: Source, raw_dir: Path) -> Source:
    """The source of `split`, from the `source` of the split of the user's files that its images come from.

    If splits are drawn from that one, its annotation file is copied to `raw_dir` with the images of `split`, their
    annotations, and all categories. Entries that belong to no image, which the conversion counts, stay in the original
    split.
    """
    original = original_split(dataset_format, split)
    derived = {name: d for name, d in derived_splits(dataset_format).items() if d.source == original}
    if not derived:
        return source
    path = (raw_dir / f"{split}.part.annotations.json").resolve()
    _write_part(Path(source.annotations), path, split, derived, f"datasets.{dataset_format.dataset}.derived_splits")
    return msgspec.structs.replace(source, split=split, annotations=str(path), annotations_sha256=sha256_file(path))


def _is_grouped(options: DerivedSplit) -> bool:
    return options.group is not None or options.group_key is not None


def _group_of(image: ImageFacts, options: DerivedSplit, where: Mapping[str, Any]) -> str:
    """The group of an image as text; a separate one if the pattern does not match its name."""
    if options.group_key is not None:
        if options.group_key not in image.entry:
            fix = "name a key that every image entry has, or use `group` (a pattern of file names)"
            problem = f"image {image.id} lacks the key {options.group_key!r}"
            raise DataError(located(problem, **where, found=sorted(image.entry), fix=fix))
        return f"group {image.entry[options.group_key]}"
    match = re.search(options.group, image.path) if options.group is not None else None
    return f"group {match[1]}" if match else f"image {image.id}"


class _Part:
    """What decides which elements of an annotation file belong to which split; 1 byte per image in memory.

    images and annotations: the number of the image of each element, int64, -1 for one of no image. Images with the same
    id have the same number, and an element whose id cannot be read has one of its own or none. split: int8 by number,
    the position of the derived split, or -1 for the original one.
    """

    def __init__(self, fd: int, spans: Mapping[str, np.ndarray], folder: Path):
        self._fd, self._spans = fd, spans["images"]
        images = _keys(fd, self._spans, _decode_images, "id", folder)
        owners = _keys(fd, spans["annotations"], _decode_image_ids, "image_id", folder)
        images, owners = same_kind(images, owners, folder)
        unique = without_rows(images, repeated_rows(images), folder)
        self.images, self.annotations = find_rows(unique, images, folder), find_rows(unique, owners, folder)
        self.split = np.full(len(unique), ORIGINAL, np.int8)

    def choose(self, derived: Mapping[str, DerivedSplit], where: Mapping[str, Any], folder: Path) -> None:
        """Choose the images of the derived splits.

        Groups are ranked by a hash of seed and group, and taken until a split has its share of the images, so that an
        added image moves few others. `where` (file, field) is named by the DataError for a split that would be empty.
        """
        for position, (name, options) in enumerate(derived.items()):
            total, images, hashes = self._hash_groups(options, where, folder)
            ranked = np.sort(hashes)
            if not len(ranked) or ranked[0] == ranked[-1]:
                problem = f"the split {name!r} needs at least two {'groups of ' if _is_grouped(options) else ''}images"
                raise DataError(located(problem, **where, found=min(len(ranked), 1)))
            wanted = min(max(1, round(options.fraction * total)), len(ranked))
            last = min(ranked[wanted - 1], ranked[np.searchsorted(ranked, ranked[-1]) - 1])  # one group must remain
            for low, block in blocks(hashes):
                self.split[images[low : low + len(block)][block <= last]] = position

    def _hash_groups(
        self, options: DerivedSplit, where: Mapping[str, Any], folder: Path
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """(number of valid images; of those without a split so far, their numbers and the hashes of their groups)."""
        images, hashes, total = ArrayFile(np.int64, folder=folder), ArrayFile(np.uint64, folder=folder), 0
        for low, facts in _image_facts(self._fd, self._spans, options.group_key is not None):
            total += sum(image is not None for image in facts)
            numbers = self.images[low : low + len(facts)].tolist()
            free = [(n, f) for n, f in zip(numbers, facts, strict=True) if f is not None and self.split[n] == ORIGINAL]
            images.append(np.array([n for n, _ in free], np.int64))
            groups = [stable_hash(options.seed, _group_of(image, options, where)) for _, image in free]
            hashes.append(np.array(groups, np.uint64))
        return total, images.finish(), hashes.finish()

    def is_in(self, numbers: np.ndarray, position: int) -> np.ndarray:
        """Whether elements of these images belong to a split."""
        return np.where(numbers < 0, ORIGINAL, self.split[numbers]) == position


def _write_part(path: Path, out: Path, split: str, derived: Mapping[str, DerivedSplit], field: str) -> None:
    """Write what an annotation file has of one split to `out`."""
    check_annotation_file(path)
    folder = out.parent
    folder.mkdir(parents=True, exist_ok=True)
    names = ("images", "annotations", "categories", "skipped")
    spans = dict.fromkeys(names, _NO_ELEMENTS) | element_spans(path, names, folder=folder)
    with path.open("rb") as source, atomic_open(out) as file:
        fd = source.fileno()
        part = _Part(fd, spans, folder)
        part.choose(derived, {"file": path, "field": field}, folder)
        own = list(derived).index(split) if split in derived else ORIGINAL
        spans["skipped"] = spans["skipped"] if own == ORIGINAL else _NO_ELEMENTS
        numbers = {"images": part.images, "annotations": part.annotations}
        file.write(b"{")
        for n, name in enumerate(names):
            file.write((b"," if n else b"") + f'"{name}":['.encode())
            separator = b""
            for low, block in blocks(spans[name], ELEMENTS_PER_READ):
                if name in numbers:
                    block = block[part.is_in(numbers[name][low : low + len(block)], own)]  # noqa: PLW2901
                for text in read_spans(fd, block):
                    file.write(separator + text)
                    separator = b",\n"
            file.write(b"]")
        file.write(b"}")


def _keys(fd: int, spans: np.ndarray, decode: Decode, field: str, folder: Path) -> np.ndarray:
    """The key of an id of each element; that of one whose id cannot be read is unique."""
    file = KeyFile(folder)
    for low, block in blocks(spans, ELEMENTS_PER_READ):
        ids = [getattr(element, field) for element in decode_elements(read_spans(fd, block), decode)]
        file.append(keys_of([f"? {field} {low + n}" if i is None else i for n, i in enumerate(ids)]))
    return file.finish()


def _image_facts(fd: int, spans: np.ndarray, keyed: bool) -> Iterator[tuple[int, list[ImageFacts | None]]]:
    """(number of the first, images) of a file in blocks, None for an invalid one; `keyed`: with their entries."""
    for low, block in blocks(spans, ELEMENTS_PER_READ):
        raw = read_spans(fd, block)
        entries = decode_elements(raw, _decode_maps) if keyed else [{}] * len(raw)
        yield (
            low,
            [
                ImageFacts(str(image.id), image.path, entry if isinstance(entry, dict) else {})
                if isinstance(image, ImageEntry)
                else None
                for image, entry in zip(decode_elements(raw, _decode_images), entries, strict=True)
            ],
        )
