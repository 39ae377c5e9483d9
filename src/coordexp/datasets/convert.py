"""Stage `convert_resize`: a source's annotations and images to pixel-space records and resized images.

Images are taken in chunks. A finished chunk is a file beside the output, so a killed run goes on
where it was; the output is the chunks in order, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from coordexp.datasets import chunk_cache as parts
from coordexp.datasets import conversion_stats as statistics
from coordexp.datasets import image_provenance as made_by
from coordexp.datasets import images as image_files
from coordexp.datasets.annotation_index import Broken, Image, Index, Rows, build_index, read_images, rows_of
from coordexp.datasets.categories import descriptions, load
from coordexp.datasets.objects import Geometry, Skip, build_objects
from coordexp.datasets.source import Source, load_source
from coordexp.geometry.resize import grid_size
from coordexp.records import Metadata, Record
from coordexp.runtime import tuning
from coordexp.runtime.code_identity import code_identity, identity_of
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.estimates import announce_measured
from coordexp.runtime.io import write_json
from coordexp.runtime.locks import end_with_parent
from coordexp.runtime.progress import Progress


class ConvertOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The knobs of the stage, named as under `data:` in the configuration (see there for each).

    The result does not depend on `num_workers` (processes).
    """

    factor: int = 32
    min_blocks: int = 4
    poly_max_points: int = 20
    poly_min_iou: float = 0.8
    resize: Literal["fill", "shrink"] = "fill"
    jpeg_quality: int = 95
    geometry: Literal["bbox", "poly"] = "bbox"
    round_geometry: bool = True
    ordering: Literal["sorted", "random"] = "sorted"
    desc: Literal["pretty", "raw"] = "pretty"
    crowd: Literal["skip", "keep"] = "skip"
    keep_empty: bool = True
    on_bad: Literal["error", "skip"] = "error"
    seed: int = 17
    num_workers: int = 1

    @classmethod
    def from_config(cls, data: dict) -> ConvertOptions:
        """Options out of the `data:` section; its other keys are not for this stage. ConfigError for a wrong type."""
        try:
            own = {k: v for k, v in data.items() if k in cls.__struct_fields__ and v is not None}
            return msgspec.convert(own, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(located(str(error), field="data")) from error


class _Job(msgspec.Struct):
    """All that a worker needs to convert a chunk."""

    source: Source
    annotations: Path
    image_dirs: list[str]
    labels: list[str]
    options: ConvertOptions
    max_blocks: int
    images_dir: str
    prefix: str
    parts: Path
    index: Index | None = None
    texts: dict[int, str] | None = None  # of the categories


def convert(
    manifest: str | Path,
    out_jsonl: str | Path,
    images_dir: str | Path,
    options: ConvertOptions,
    max_blocks: int,
    stats_path: str | Path,
    made_by_path: str | Path | None = None,
) -> None:
    """Write records (pixel space) to `out_jsonl`, images under `images_dir`, counts to `stats_path`.

    `manifest` is the JSON of a Source. `max_blocks` is the budget in tiles of factor x factor
    pixels. Images are named relative to the JSONL; `images_dir` is for this split alone. `made_by_path` is to
    say from and by what the images were made: for a workflow, which does not look at the images themselves.
    DataError for bad input, naming file and id; with `options.on_bad == "skip"` it is listed in the
    statistics instead, and only a source without any usable image is an error.
    """
    manifest, out_jsonl, images_dir = Path(manifest), Path(out_jsonl), Path(images_dir)
    options = ConvertOptions.from_config(msgspec.to_builtins(options))  # checks the types
    source = load_source(manifest)
    base = manifest.parent
    image_dirs = [base / folder for folder in source.image_dirs]
    job = _Job(
        source=source,
        annotations=base / source.annotations,
        image_dirs=[str(folder) for folder in image_dirs],
        labels=_labels(image_dirs),
        options=options,
        max_blocks=max_blocks,
        images_dir=str(_own_images(images_dir, source, image_dirs, options, max_blocks)),
        prefix=f"{os.path.relpath(images_dir, out_jsonl.parent)}/".removeprefix("./"),
        parts=_parts_folder(out_jsonl, source, image_dirs, options, max_blocks),
    )
    index, tally = _run(job, options.num_workers)
    written = parts.join(out_jsonl, job.parts, _chunk_count(index))
    summary = statistics.summary(tally, source, len(job.texts))
    if not written:
        out_jsonl.unlink(missing_ok=True)
        found, fix = summary["images"], "correct what is named under `dropped`"
        raise DataError(located("no image could be used", file=base / source.annotations, found=found, fix=fix))
    write_json(stats_path, summary)
    if made_by_path is not None:
        write_json(made_by_path, {**made_by.read(images_dir), "image_dirs": source.image_dirs})
    shutil.rmtree(job.parts.parent)


def _run(job: _Job, workers: int) -> tuple[Index, statistics.Tally]:
    """Index the file, convert every chunk, and add up what they report."""
    image_files.reuse_memory()
    if workers <= 1:
        tally = _begin(job, build_index(job.annotations), workers)
        return job.index, _collect(tally, job.index, (_convert_part(job, k) for k in range(_chunk_count(job.index))))
    try:
        with _pool(workers, initializer=end_with_parent) as pool:
            tally = _begin(job, build_index(job.annotations, pool.map), workers)
        with _pool(workers, initializer=_set_job, initargs=(job,)) as pool:
            return job.index, _collect(tally, job.index, pool.map(_convert_part_of_job, range(_chunk_count(job.index))))
    except BrokenProcessPool as error:
        fix = "give it more memory or fewer workers; what is finished is kept for the next run"
        raise DataError(located("a conversion process was killed", file=job.annotations, fix=fix)) from error


def _begin(job: _Job, index: Index, workers: int) -> statistics.Tally:
    """Tell the job what is in the file, and the user what it will take; the counts of what belongs to no image."""
    job.index = index
    table = load(job.annotations, job.options.on_bad, index.categories)
    job.texts = descriptions(table, job.options.desc)
    _announce(job, workers)
    return statistics.lost(index, job.options.on_bad)


def _announce(job: _Job, workers: int) -> None:
    """Say what the chunks that are left will take; SpaceError when the disk has no room for them."""
    total, size = len(job.index), _chunk_size(job.index)
    finished = parts.count(job.parts)
    fd = os.open(job.index.path, os.O_RDONLY)

    def prepare(i: int, scratch: str) -> None:
        [image] = read_images(fd, job.index, i, i + 1)
        with contextlib.suppress(image_files.ImageError):  # told when its turn comes
            _image(msgspec.structs.replace(job, images_dir=scratch), image)

    try:
        left = total - finished * size
        announce_measured("convert", "images", total, left, workers, Path(job.images_dir), prepare)
    finally:
        os.close(fd)


def _pool(workers: int, **options) -> ProcessPoolExecutor:
    """Processes that share what this one holds (forked); a killed one is an error, not a wait without end."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), **options)


def _collect(tally: statistics.Tally, index: Index, results) -> statistics.Tally:
    """`tally` with the counts of all chunks, in their order."""
    progress = Progress("convert", len(index), "images")
    how: Counter = Counter()
    for part, part_how in results:
        tally.add(part)
        how.update(part_how)
        progress.add(part.counts["images listed"])
    progress.finish()
    print("images: " + ", ".join(f"{n} {name}" for name, n in sorted(how.items())), file=sys.stderr)
    return tally


_job: _Job | None = None


def _set_job(job: _Job) -> None:
    global _job  # noqa: PLW0603 -- set once in each worker process
    _job = job
    end_with_parent()


def _convert_part_of_job(k: int) -> tuple[statistics.Tally, dict[str, int]]:
    assert _job is not None
    return _convert_part(_job, k)


def _chunk_size(index: Index) -> int:
    return min(tuning.IMAGES_PER_CHUNK, max(16, len(index) // 64))


def _chunk_count(index: Index) -> int:
    return -(-len(index) // _chunk_size(index))


def _convert_part(job: _Job, k: int) -> tuple[statistics.Tally, dict[str, int]]:
    """Convert chunk k, or read what an earlier run left; (counts, what became of its images)."""
    if (earlier := parts.read_tally(job.parts, k)) is not None:
        return earlier, {"finished earlier": earlier.counts["images listed"]}
    tally, how = statistics.Tally(), Counter()
    gc.disable()  # nothing here is cyclic, and a hundred thousand small objects are looked at again and again
    fd = os.open(job.index.path, os.O_RDONLY)
    try:
        size = _chunk_size(job.index)
        low, high = k * size, min((k + 1) * size, len(job.index))
        images, rows = read_images(fd, job.index, low, high), rows_of(job.index, low, high)
        records = _records(job, fd, images, rows, tally, how)
    finally:
        os.close(fd)
        gc.enable()
    parts.write(job.parts, k, tally, records)
    return tally, how


def _records(job: _Job, fd: int, images: list, rows: Rows, tally: statistics.Tally, how: Counter) -> list[Record]:
    kept, paths, sizes = [], [], []
    owned = np.diff(rows.offsets)
    for i, image in enumerate(images):
        tally.counts["images listed"] += 1
        tally.counts["objects listed"] += int(owned[i])
        try:
            path, size, outcome = _image(job, image)
        except image_files.ImageError as error:
            name = "" if isinstance(image, Broken) else image.path
            _bad(job, Skip("image", error.reason, image.id, None, name, str(error)), tally)
            tally.counts["objects dropped:their image was skipped"] += int(owned[i])
            continue
        how[outcome] += 1
        kept.append(i)
        paths.append(path)
        sizes.append(size)
    own_images = [images[i] for i in kept]
    own_rows = rows.take(np.isin(rows.owner, kept), np.concatenate([[0], np.cumsum(owned[kept])]).astype(np.int64))
    geometry = msgspec.convert(job.options, Geometry, from_attributes=True)
    batch = build_objects(own_images, own_rows, sizes, job.texts, geometry, fd)
    for skip in batch.bad:
        _bad(job, skip, tally)
    for skip in (*batch.skipped, *batch.bad):
        tally.counts[f"objects dropped:{skip.reason}"] += 1
    tally.skipped += batch.skipped
    tally.objects.update(batch.counts)
    records = []
    for image, path, size, own, lacks in zip(own_images, paths, sizes, batch.objects, batch.incomplete, strict=True):
        tally.counts["images without objects"] += not own
        if own or job.options.keep_empty:
            records.append(_record(job, image, path, size, own, lacks))
            tally.counts[f"blocks:{size[0] * size[1] // job.options.factor**2}"] += 1
        else:
            tally.counts["images dropped:no objects"] += 1
    tally.counts["images written"] += len(records)
    return records


def _image(job: _Job, image: Image | Broken) -> tuple[str, tuple[int, int], str]:
    """(path from the JSONL, size in pixels, what happened) of one image; ImageError if it cannot be used."""
    if isinstance(image, Broken):
        raise image_files.ImageError("unreadable image entry", image.problem)
    options = job.options
    limits = {"factor": options.factor, "max_blocks": job.max_blocks, "min_blocks": options.min_blocks}
    try:
        size = grid_size(image.width, image.height, options.resize, **limits)
    except ValueError as error:
        raise image_files.ImageError("impossible size", str(error)) from error
    if not image.path:
        raise image_files.ImageError("no file name", "the entry has neither file_name nor coco_url")
    folder, inner = image_files.find(image.path, job.image_dirs, from_url=not image.file_name)
    name = image_files.output_name(inner, resized=size != (image.width, image.height))
    name = f"{job.labels[folder]}/{name}"
    source, target = f"{job.image_dirs[folder]}/{inner}", f"{job.images_dir}/{name}"
    how = image_files.prepare(source, target, (image.width, image.height), size, options.jpeg_quality)
    return f"{job.prefix}{name}", size, how


def _record(job: _Job, image: Image, path: str, size: tuple[int, int], own: list, lacks: set[int]) -> Record:
    listed = image.not_exhaustive_category_ids
    metadata = Metadata(
        image_id=image.id,
        source_width=image.width,
        source_height=image.height,
        file_name=image.path,
        dataset=job.source.dataset,
        neg_category_ids=image.neg_category_ids,
        not_exhaustive_category_ids=sorted({*listed, *lacks}) if lacks else listed,
    )
    return Record([path], size[0], size[1], "pixel", own, metadata)


def _bad(job: _Job, skip: Skip, tally: statistics.Tally) -> None:
    if job.options.on_bad == "error":
        raise statistics.bad_input(skip, job.index.path)
    tally.skipped.append(skip)
    if skip.kind == "image":
        tally.counts[f"images dropped:{skip.reason}"] += 1


def _labels(image_dirs: list[Path]) -> list[str]:
    """A folder name for each source folder, numbered where two have the same name."""
    names = [folder.name or "images" for folder in image_dirs]
    return [name if names.count(name) == 1 else f"{i}_{name}" for i, name in enumerate(names)]


def _own_images(folder: Path, source: Source, image_dirs: list[Path], options: ConvertOptions, max_blocks: int) -> Path:
    """The folder of this split's images, emptied if an earlier conversion made them from or by something else."""
    own = {"dataset": source.dataset, "split": source.split}
    how = {
        "image_dirs": [str(d.resolve()) for d in image_dirs],
        "max_blocks": max_blocks,
        **{k: getattr(options, k) for k in ("factor", "min_blocks", "resize", "jpeg_quality")},
        "resampler": image_files.resampler(),
        "code": code_identity(image_files.__name__),
    }
    return made_by.claim(folder, own, how)


def _parts_folder(
    jsonl: Path, source: Source, image_dirs: list[Path], options: ConvertOptions, max_blocks: int
) -> Path:
    """Where finished chunks of just this conversion are kept."""
    key = {
        "source": msgspec.to_builtins(source),
        "image_dirs": [str(d.resolve()) for d in image_dirs],
        "options": msgspec.to_builtins(options) | {"num_workers": None},
        "max_blocks": max_blocks,
        "chunk": tuning.IMAGES_PER_CHUNK,
        "code": code_identity(__name__),
    }
    return parts.folder(jsonl, identity_of(key))
