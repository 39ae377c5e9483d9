"""Derived splits: a seeded part of the images of a split, by image or by group, becomes a split of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import Decode, ImageEntry, decode_elements
from coordexp.datasets.annotation_file import Id, check_annotation_file
from coordexp.datasets.formats import DatasetFormat, DerivedSplit, derived_splits, original_split
from coordexp.datasets.json_spans import element_spans, read_spans
from coordexp.datasets.ordering import stable_hash
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import atomic_open, sha256_file

ELEMENTS_PER_READ = 10_000
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


def choose(images: Iterable[ImageFacts], derived: Mapping[str, DerivedSplit], where: Mapping[str, Any]) -> dict:
    """The derived split of each image, by id; images that stay in the original split are left out.

    Groups are ranked by a hash of seed and group, and taken until a split has its share of the images, so that an added
    image moves few others. `where` (file, field) is named by the DataError for a split that would be empty.
    """
    images = list(images)
    remaining, chosen = images, {}
    for name, options in derived.items():
        groups: dict[str, list[ImageFacts]] = {}
        for image in remaining:
            groups.setdefault(_group_of(image, options, where), []).append(image)
        if len(groups) < 2:
            problem = f"the split {name!r} needs at least two {'groups of ' if _is_grouped(options) else ''}images"
            raise DataError(located(problem, **where, found=len(groups)))
        wanted, taken = max(1, round(options.fraction * len(images))), 0
        ranked = sorted(groups, key=lambda group: stable_hash(options.seed, group))
        for group in ranked[:-1]:
            if taken < wanted:
                chosen |= {image.id: name for image in groups[group]}
                taken += len(groups[group])
        remaining = [image for image in remaining if image.id not in chosen]
    return chosen


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


def _write_part(path: Path, out: Path, split: str, derived: Mapping[str, DerivedSplit], field: str) -> None:
    """Write what an annotation file has of one split to `out`."""
    check_annotation_file(path)
    spans = element_spans(path, ("images", "annotations", "categories", "skipped"))
    with path.open("rb") as source, atomic_open(out) as part:
        fd = source.fileno()
        keyed = any(options.group_key is not None for options in derived.values())
        facts = _image_facts(fd, spans.get("images", _NO_ELEMENTS), keyed)
        chosen = choose(facts, derived, {"file": path, "field": field})

        def belongs(image_id: Any) -> bool:
            return chosen.get(str(image_id)) == (split if split in derived else None)

        selections = (
            ("images", lambda raw: _selected(raw, _decode_images, "id", belongs)),
            ("annotations", lambda raw: _selected(raw, _decode_image_ids, "image_id", belongs)),
            ("categories", lambda raw: raw),
            ("skipped", lambda raw: [] if split in derived else raw),
        )
        part.write(b"{")
        for n, (name, select) in enumerate(selections):
            part.write((b"," if n else b"") + f'"{name}":['.encode())
            _copy(fd, spans.get(name, _NO_ELEMENTS), select, part)
            part.write(b"]")
        part.write(b"}")


def _image_facts(fd: int, spans: np.ndarray, keyed: bool) -> Iterator[ImageFacts]:
    """The valid images of a file; their entries are decoded in full only if `keyed`."""
    for low in range(0, len(spans), ELEMENTS_PER_READ):
        raw = read_spans(fd, spans[low : low + ELEMENTS_PER_READ])
        entries = decode_elements(raw, _decode_maps) if keyed else [{}] * len(raw)
        for image, entry in zip(decode_elements(raw, _decode_images), entries, strict=True):
            if isinstance(image, ImageEntry):
                yield ImageFacts(str(image.id), image.path, entry if isinstance(entry, dict) else {})


def _selected(raw: list[bytes], decode: Decode, key: str, belongs: Callable[[Any], bool]) -> list[bytes]:
    ids = [getattr(element, key) for element in decode_elements(raw, decode)]
    return [text for text, image_id in zip(raw, ids, strict=True) if belongs(image_id)]


def _copy(fd: int, spans: np.ndarray, select: Callable[[list[bytes]], list[bytes]], part: IO[bytes]) -> None:
    """Copy the selected elements of a list, separated by commas."""
    separator = b""
    for low in range(0, len(spans), ELEMENTS_PER_READ):
        for text in select(read_spans(fd, spans[low : low + ELEMENTS_PER_READ])):
            part.write(separator + text)
            separator = b",\n"
