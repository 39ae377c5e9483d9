"""Conversion of one chunk of images, with their annotations, to records."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from coordexp.datasets import chunk_cache
from coordexp.datasets.annotation_entries import ImageEntry, InvalidElement
from coordexp.datasets.annotation_index import AnnotationColumns, AnnotationIndex, read_images
from coordexp.datasets.categories import DescStyle
from coordexp.datasets.conversion_stats import ConversionCounts
from coordexp.datasets.duplicate_images import OnDuplicate, content_key
from coordexp.datasets.images import (
    MAX_PIXELS,
    Exif,
    ImageError,
    exif_convention,
    find_image,
    output_name,
    prepare_image,
)
from coordexp.datasets.objects import ObjectOptions, SkippedItem, build_objects
from coordexp.datasets.ordering import ObjectOrder
from coordexp.datasets.phrases import phrases_of
from coordexp.datasets.source import OnBad, Source
from coordexp.geometry.resize import ResizeRule, grid_size
from coordexp.records import Metadata, Object, Phrase, Record
from coordexp.runtime import tuning
from coordexp.runtime.code_identity import identity_of
from coordexp.runtime.errors import ConfigError, located


def _option(description: str, **bounds: float) -> msgspec.Meta:
    return msgspec.Meta(description=description, **bounds)


class ConvertOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of rule convert_resize."""

    factor: Annotated[
        int, _option("FACTOR: image sides are multiples of this many pixels (Qwen3-VL: patch 16, merge 2)", ge=1)
    ] = 32
    min_blocks: Annotated[
        int, _option("MIN_BLOCKS: minimum image size after resizing, in tiles of factor x factor pixels", ge=1)
    ] = 4
    poly_max_points: Annotated[
        int, _option("POLY_MAX_POINTS: polygons are simplified to at most this many points", ge=3)
    ] = 20
    poly_min_iou: Annotated[
        float, _option("a simplified polygon with a lower IoU with its mask is replaced by the box", ge=0, le=1)
    ] = 0.8
    resize: Annotated[
        ResizeRule, _option("fill: enlarge images up to the budget of max_blocks tiles; shrink: Qwen's own rule")
    ] = "fill"
    jpeg_quality: Annotated[int, _option("JPEG quality of re-encoded images", ge=1, le=100)] = 95
    exif: Annotated[
        Exif,
        _option(
            "pixels that the boxes of an image with an EXIF orientation refer to: `apply`: upright image; `ignore`: "
            "stored pixels; `auto`: whichever has the annotated size, the upright image if both do"
        ),
    ] = "auto"
    max_pixels: Annotated[
        int, _option("images with more pixels are invalid: decoding takes 5 bytes per pixel", ge=1)
    ] = MAX_PIXELS
    geometry: Annotated[Literal["bbox", "poly"], _option("geometry of the records' objects")] = "bbox"
    round_geometry: Annotated[
        bool, _option("round coordinates to integers; `norm` always holds the unrounded geometry")
    ] = True
    ordering: Annotated[
        ObjectOrder, _option("order of objects: top to bottom, then left to right; or seeded random")
    ] = "sorted"
    desc: Annotated[DescStyle, _option("pretty: baseball_bat becomes `baseball bat`; raw: the category's name")] = (
        "pretty"
    )
    crowd: Annotated[Literal["skip", "keep"], _option("annotations with iscrowd: skip and count, or keep")] = "skip"
    keep_empty: Annotated[bool, _option("keep training images without objects (other splits always keep theirs)")] = (
        True
    )
    on_bad: Annotated[OnBad, _option("an invalid image or annotation: `error`, or `skip` (counted and listed)")] = (
        "error"
    )
    on_duplicate: Annotated[
        OnDuplicate,
        _option(
            "byte-identical images, within the split or in another split of the run that was converted earlier: "
            "`warn`, `error`, or `ignore` (no check)"
        ),
    ] = "warn"
    seed: Annotated[int, _option("seed of the tiny split, the calibration split and random ordering")] = 17
    num_workers: Annotated[int, _option("processes; the result does not depend on it", ge=1)] = 1

    @classmethod
    def from_config(cls, data: dict) -> ConvertOptions:
        """The options in the `data` section of the configuration, whose other keys are ignored; or a ConfigError."""
        try:
            known = {k: v for k, v in data.items() if k in cls.__struct_fields__ and v is not None}
            return msgspec.convert(known, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(located(str(error), field="data")) from error


class ConversionJob(msgspec.Struct):
    """What a worker process needs to convert a chunk.

    image_prefix: path of `images_dir` relative to the JSONL file, with a final slash. image_dirs: the source folders;
    folder_names: their names below `images_dir`. index, descriptions (by category id), same_file and
    alike (see `entry_checks.SharedNames`) are set once the annotation file has been read.
    """

    source: Source
    annotations: Path
    image_dirs: list[str]
    folder_names: list[str]
    options: ConvertOptions
    max_blocks: int
    images_dir: str
    image_prefix: str
    chunks: Path
    index: AnnotationIndex | None = None
    descriptions: dict[int, str] | None = None
    same_file: dict[int | str, int | str] = {}
    alike: frozenset[int | str] = frozenset()


def chunk_count(index: AnnotationIndex) -> int:
    """Number of chunks that the images of a file are divided into."""
    return -(-len(index) // chunk_size(index))


def chunk_size(index: AnnotationIndex) -> int:
    """Images per chunk: small datasets have smaller chunks, so that all workers get some."""
    return min(tuning.IMAGES_PER_CHUNK, max(16, len(index) // 64))


def convert_chunk(job: ConversionJob, k: int) -> tuple[ConversionCounts, dict[str, int]]:
    """Convert chunk `k` unless an earlier run did; returns its counts, and the number of images by outcome."""
    if (earlier := chunk_cache.read_counts(job.chunks, k)) is not None:
        return earlier, {"finished earlier": earlier.counts["images listed"]}
    totals, outcomes = ConversionCounts(), Counter()
    gc.disable()  # nothing here is cyclic, and a collection would visit some hundred thousand small objects each time
    fd = os.open(job.index.path, os.O_RDONLY)
    try:
        size = chunk_size(job.index)
        low, high = k * size, min((k + 1) * size, len(job.index))
        images, annotations = read_images(fd, job.index, low, high), job.index.annotations_of(low, high)
        records = _convert_images(job, fd, images, annotations, totals, outcomes)
    finally:
        os.close(fd)
        gc.enable()
    if not totals.problems:  # the next run looks at the corrected data
        chunk_cache.write_chunk(job.chunks, k, totals, records)
    return totals, outcomes


def locate_image(job: ConversionJob, image: ImageEntry | InvalidElement) -> tuple[tuple[int, int], int, str]:
    """(size of the written image in pixels, index of its source folder, path in it); ImageError if it has none."""
    if isinstance(image, InvalidElement):
        raise ImageError("invalid image entry", image.problem)
    if image.id in job.same_file:
        raise ImageError("image listed twice", f"image {job.same_file[image.id]!r} has the same file")
    options = job.options
    limits = {"factor": options.factor, "max_blocks": job.max_blocks, "min_blocks": options.min_blocks}
    try:
        size = grid_size(image.width, image.height, options.resize, **limits)
    except ValueError as error:
        raise ImageError("impossible size", str(error)) from error
    if not image.path:
        raise ImageError("no file name", "the entry has neither file_name nor coco_url")
    return size, *find_image(image.path, job.image_dirs, from_url=not image.file_name)


class WrittenImage(NamedTuple):
    """Path of a written image relative to the JSONL, its size in pixels, the path of its source, and the outcome."""

    path: str
    size: tuple[int, int]
    source: str
    outcome: str


def convert_image(job: ConversionJob, image: ImageEntry | InvalidElement) -> WrittenImage:
    """Write one image; ImageError if it is unusable."""
    size, folder, inner = locate_image(job, image)
    options = job.options
    name = output_name(inner, size != (image.width, image.height), job.image_dirs[folder])
    if image.id in job.alike:
        name = _distinct(name, inner)
    name = f"{job.folder_names[folder]}/{name}"
    source, target = f"{job.image_dirs[folder]}/{inner}", f"{job.images_dir}/{name}"
    limits = {"exif": options.exif, "max_pixels": options.max_pixels}
    outcome = prepare_image(source, target, (image.width, image.height), size, options.jpeg_quality, **limits)
    return WrittenImage(f"{job.image_prefix}{name}", size, source, outcome)


def _distinct(name: str, inner: str) -> str:
    """`name` with a hash of `inner`, the name of the source image."""
    folder, _, last = name.rpartition("/")
    stem, _, suffix = last.rpartition(".")
    return f"{folder}/{stem.encode()[:200].decode(errors='ignore')}.{identity_of(inner)}.{suffix}".removeprefix("/")


def bad_image(image: ImageEntry | InvalidElement, error: ImageError) -> SkippedItem:
    """The item that lists an unusable image."""
    name = "" if isinstance(image, InvalidElement) else image.path
    return SkippedItem("image", error.reason, image.id, None, name, str(error))


def _convert_images(
    job: ConversionJob,
    fd: int,
    images: Sequence[ImageEntry | InvalidElement],
    annotations: AnnotationColumns,
    totals: ConversionCounts,
    outcomes: Counter,
) -> list[Record]:
    """Write the images and return their records; adds to `totals` and `outcomes`."""
    kept, written = [], []
    object_counts = np.diff(annotations.offsets)
    for i, image in enumerate(images):
        totals.counts["images listed"] += 1
        totals.counts["objects listed"] += int(object_counts[i])
        try:
            result = convert_image(job, image)
        except ImageError as error:
            _report_bad(job, bad_image(image, error), totals)
            totals.counts["objects dropped:image skipped"] += int(object_counts[i])
            if lost := len(getattr(image, "phrases", None) or ()):
                totals.counts["phrases listed"] += lost
                totals.counts["phrases dropped:image skipped"] += lost
            continue
        outcomes[result.outcome] += 1
        if result.outcome != "linked":  # these have no EXIF orientation
            _count_convention(result.source, image, totals)
        kept.append(i)
        written.append(result)
    offsets = np.concatenate([[0], np.cumsum(object_counts[kept])]).astype(np.int64)
    annotations = annotations.take(np.isin(annotations.image_index, kept), offsets)
    return _build_records(job, fd, [images[i] for i in kept], annotations, written, totals)


def _count_convention(source: str, image: ImageEntry, totals: ConversionCounts) -> None:
    convention = exif_convention(source, (image.width, image.height))
    if convention is not None:
        totals.counts[f"exif:{convention}"] += 1
    if convention == "undecidable":
        totals.undecidable.append(image.path)


def _build_records(
    job: ConversionJob,
    fd: int,
    images: list[ImageEntry],
    annotations: AnnotationColumns,
    written: list[WrittenImage],
    totals: ConversionCounts,
) -> list[Record]:
    options = msgspec.convert(job.options, ObjectOptions, from_attributes=True)
    batch = build_objects(images, annotations, [image.size for image in written], job.descriptions, options, fd)
    for item in batch.bad:
        _report_bad(job, item, totals)
    for item in (*batch.skipped, *batch.bad):
        totals.counts[f"objects dropped:{item.reason}"] += 1
    totals.skipped += batch.skipped
    totals.objects.update(batch.counts)
    records = []
    columns = (images, written, batch.objects, batch.ids, batch.incomplete)
    for image, result, objects, ids, lost in zip(*columns, strict=True):
        totals.counts["images without objects"] += not objects
        phrases = _phrases(job, image, ids, totals) if image.phrases else []
        if objects or phrases or job.options.keep_empty:
            path, size, source, _ = result
            records.append(_record(job, image, path, size, objects, phrases, lost))
            if job.options.on_duplicate != "ignore":
                totals.keys.append(content_key(source))
            totals.counts[f"blocks:{size[0] * size[1] // job.options.factor**2}"] += 1
        else:
            totals.counts["images dropped:no objects"] += 1
    totals.counts["images written"] += len(records)
    return records


def _phrases(
    job: ConversionJob, image: ImageEntry, annotation_ids: list[int | str], totals: ConversionCounts
) -> list[Phrase]:
    """The phrases of an image; adds to `totals`."""
    batch = phrases_of(image, annotation_ids)
    for item in batch.bad:
        _report_bad(job, item, totals)
    totals.skipped += batch.skipped
    for item in (*batch.skipped, *batch.bad):
        totals.counts[f"phrases dropped:{item.reason}"] += 1
    totals.counts["phrases listed"] += len(image.phrases or ())
    totals.counts["phrases written"] += len(batch.phrases)
    totals.counts["phrases without objects"] += sum(not phrase.objects for phrase in batch.phrases)
    return batch.phrases


def _record(
    job: ConversionJob,
    image: ImageEntry,
    path: str,
    size: tuple[int, int],
    objects: list[Object],
    phrases: list[Phrase],
    lost: set[int],
) -> Record:
    """The record of an image; categories that `lost` an annotation are no longer exhaustively annotated."""
    listed = image.not_exhaustive_category_ids or []
    metadata = Metadata(
        image_id=image.id,
        source_width=image.width,
        source_height=image.height,
        file_name=image.path,
        dataset=job.source.dataset,
        neg_category_ids=image.neg_category_ids or [],
        not_exhaustive_category_ids=sorted({*listed, *lost}) if lost else listed,
    )
    return Record([path], size[0], size[1], "pixel", objects, metadata, phrases)


def _report_bad(job: ConversionJob, item: SkippedItem, totals: ConversionCounts) -> None:
    """List a bad image or annotation, as a problem unless `on_bad` is `skip`."""
    if job.options.on_bad == "error":
        totals.problems.append(item)
        return
    totals.skipped.append(item)
    if item.kind == "image":
        totals.counts[f"images dropped:{item.reason}"] += 1
