"""Checks of all entries of an annotation file before a conversion starts: only unreadable images are found later."""

from __future__ import annotations

import os

import msgspec
import numpy as np

from coordexp.datasets.annotation_index import read_images
from coordexp.datasets.chunk_conversion import ConversionJob, bad_image, locate_image
from coordexp.datasets.images import ImageError
from coordexp.datasets.objects import ObjectOptions, SkippedItem, select_annotations
from coordexp.runtime import tuning


def bad_entries(job: ConversionJob) -> list[SkippedItem]:
    """Invalid and missing images, and the bad annotations of the others, in blocks in the order of the file."""
    fd = os.open(job.index.path, os.O_RDONLY)
    try:
        bounds = range(0, len(job.index), tuning.ELEMENTS_PER_BLOCK)
        return [item for low in bounds for item in _bad_entries(job, fd, low)]
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
