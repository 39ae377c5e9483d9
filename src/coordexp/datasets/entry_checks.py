"""Checks of all entries of an annotation file before a conversion starts: only unreadable images are found later."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec
import numpy as np

from coordexp.datasets.annotation_index import ImageEntry, read_images
from coordexp.datasets.chunk_conversion import ConversionJob, bad_image, locate_image
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


def repeated_files(job: ConversionJob) -> dict[int | str, int | str]:
    """The ids of images whose file an earlier image of the list has, with the id of that image.

    Only images that share the last part of their name are looked up on the disk.
    """
    hashes = np.array([hash(_last_part(image)) for image in _named_images(job)], dtype=np.int64)
    values, counts = np.unique(hashes, return_counts=True)
    shared = set(values[counts > 1].tolist())
    owners: dict[tuple[int, str], int | str] = {}
    repeated = {}
    for image in _named_images(job) if shared else ():
        if hash(_last_part(image)) not in shared:
            continue
        with contextlib.suppress(ImageError, DataError):  # reported when the image is converted
            folder, inner = find_image(image.path, job.image_dirs, from_url=not image.file_name)
            owner = owners.setdefault((folder, os.path.normpath(inner)), image.id)
            if owner != image.id:
                repeated[image.id] = owner
    return repeated


def _last_part(image: ImageEntry) -> str:
    return image.path.rpartition("/")[2]


def _named_images(job: ConversionJob) -> Iterator[ImageEntry]:
    """The valid entries of the list of images that name a file."""
    fd = os.open(job.index.path, os.O_RDONLY)
    try:
        for low in range(0, len(job.index), tuning.ELEMENTS_PER_BLOCK):
            block = read_images(fd, job.index, low, min(low + tuning.ELEMENTS_PER_BLOCK, len(job.index)))
            yield from (image for image in block if isinstance(image, ImageEntry) and image.path)
    finally:
        os.close(fd)


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
