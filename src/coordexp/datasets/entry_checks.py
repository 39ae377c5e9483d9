"""Checks of all entries of an annotation file before a conversion starts: only unreadable images are found later."""

from __future__ import annotations

import contextlib
import itertools
import os
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import ImageEntry
from coordexp.datasets.annotation_index import all_images, read_images
from coordexp.datasets.chunk_conversion import ConversionJob, bad_image, locate_image
from coordexp.datasets.disk_arrays import ArrayFile, repeated_rows
from coordexp.datasets.images import ImageError, find_image
from coordexp.datasets.objects import ObjectOptions, SkippedItem, select_annotations
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError


def bad_entries(job: ConversionJob) -> list[SkippedItem]:
    """Invalid and missing images, and the bad annotations of the others, in blocks in the order of the file."""
    fd = os.open(job.index.path, os.O_RDONLY)
    try:
        bounds = range(0, len(job.index), tuning.ELEMENTS_PER_BLOCK)
        return [item for low in bounds for item in _bad_entries(job, fd, low)]
    finally:
        os.close(fd)


class SharedNames(NamedTuple):
    """Images that share a file or a name with another image.

    repeated: the ids of images whose file an earlier image of the list has, with the id of that image.
    alike: the ids of images whose written file would replace that of another one on a disk that ignores case, as those
        of macOS and Windows do. An image may be written under its own name or with `.jpg` appended.
    """

    repeated: dict[int | str, int | str]
    alike: frozenset[int | str]


def shared_names(job: ConversionJob) -> SharedNames:
    """The images of a dataset that share files or names; only those with similar names are looked up on the disk."""
    owners: dict[tuple[int, str], int | str] = {}
    written: dict[tuple[int, str], dict[str, set[int | str]]] = {}
    repeated = {}
    for image, folder, path in _similar(job):
        inner = os.path.normpath(path)
        owner = owners.setdefault((folder, inner), image.id)
        if owner != image.id:
            repeated[image.id] = owner
        for name in {inner, inner if inner.lower().endswith((".jpg", ".jpeg")) else f"{inner}.jpg"}:
            written.setdefault((folder, _alike(name)), {}).setdefault(name, set()).add(image.id)
    alike = frozenset(i for names in written.values() if len(names) > 1 for ids in names.values() for i in ids)
    return SharedNames(repeated, alike)


def _similar(job: ConversionJob) -> Iterator[tuple[ImageEntry, int, str]]:
    """(image, index of its folder, path inside it) of images whose last part is alike, apart from a final `.jpg`."""
    file, keys = ArrayFile(np.int64, folder=job.chunks), (_key(image) for image in _named_images(job))
    while block := list(itertools.islice(keys, tuning.ROWS_PER_BLOCK)):
        file.append(np.array(block))
    hashes = file.finish()
    shared = set(hashes[repeated_rows(hashes)].tolist())
    for image in _named_images(job) if shared else ():
        if _key(image) in shared:
            with contextlib.suppress(ImageError, DataError):  # reported when the image is converted
                yield image, *find_image(image.path, job.image_dirs, from_url=not image.file_name)


def _key(image: ImageEntry) -> int:
    return hash(_alike(image.path.rpartition("/")[2]).removesuffix(".jpg"))


def _alike(name: str) -> str:
    """The same text for names that are equal on a file system that ignores case or Unicode normalisation."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _named_images(job: ConversionJob) -> Iterator[ImageEntry]:
    """The valid entries of the list of images that name a file."""
    return (image for image in all_images(job.index) if isinstance(image, ImageEntry) and image.path)


def _bad_entries(job: ConversionJob, fd: int, low: int) -> list[SkippedItem]:
    high = min(low + tuning.ELEMENTS_PER_BLOCK, len(job.index))
    images, annotations = read_images(fd, job.index, low, high), job.index.annotations_of(low, high)
    items, usable = [], []
    for i, image in enumerate(images):
        try:
            locate_image(job, image)
            usable.append(i)
        except ImageError as error:
            items.append(bad_image(image, error))
    kept = [images[i] for i in usable]
    offsets = np.concatenate([[0], np.cumsum(np.diff(annotations.offsets)[usable])]).astype(np.int64)
    annotations = annotations.take(np.isin(annotations.image_index, usable), offsets)
    options = msgspec.convert(job.options, ObjectOptions, from_attributes=True)
    return items + select_annotations(kept, annotations, job.descriptions, options).bad
