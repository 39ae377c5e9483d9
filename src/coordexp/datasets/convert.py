"""Stage `convert_resize`: the annotations and images of a source to pixel-space records and resized images.

Images are converted in chunks. A finished chunk is a file next to the output, so a killed run resumes after it. The
output is the chunks in order, whatever the number of processes, or of jobs that convert a shard of the chunks each.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import msgspec

from coordexp.datasets import chunk_cache, images
from coordexp.datasets.annotation_index import AnnotationIndex, all_annotations, build_index, read_images
from coordexp.datasets.categories import descriptions, load_categories
from coordexp.datasets.chunk_conversion import (
    ConversionJob,
    ConvertOptions,
    chunk_count,
    chunk_size,
    convert_chunk,
    convert_image,
)
from coordexp.datasets.conversion_stats import (
    ConversionCounts,
    bad_input,
    check_not_emptied,
    notices,
    skipped_lines,
    summary,
    unusable_elements,
)
from coordexp.datasets.duplicate_images import (
    check_duplicates,
    duplicate_images,
    forget_keys,
    without_other_splits,
)
from coordexp.datasets.entry_checks import bad_entries, shared_names
from coordexp.datasets.image_provenance import prepare_images_dir, read_provenance
from coordexp.datasets.source import Source, load_source
from coordexp.geometry.boxes import looks_normalised, xywh_to_xyxy
from coordexp.runtime import tuning
from coordexp.runtime.code_identity import code_identity, identity_of
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.estimates import announce_measured
from coordexp.runtime.io import write_json
from coordexp.runtime.locks import end_with_parent, sole_writer
from coordexp.runtime.notices import notice
from coordexp.runtime.progress import Progress


def convert(
    manifest: str | Path,
    out_jsonl: str | Path,
    images_dir: str | Path,
    options: ConvertOptions,
    max_blocks: int,
    stats_path: str | Path,
    provenance_path: str | Path | None = None,
) -> None:
    """Write records (pixel space) to `out_jsonl`, images under `images_dir`, and counts to `stats_path`.

    `manifest` is the file of a `Source`. `max_blocks` is the budget in tiles of factor x factor pixels. Records name
    images relative to the JSONL; `images_dir` holds the images of this split only. `provenance_path` gets a copy of the
    images' provenance, for a workflow that does not track the images themselves.
    DataError with file and id for bad input; with `options.on_bad == "skip"` bad items are listed in the statistics,
    and only a source without any usable image is an error.
    """
    out_jsonl, images_dir = Path(out_jsonl), Path(images_dir)
    job = _prepare(Path(manifest), out_jsonl, images_dir, options, max_blocks)
    forget_keys(images_dir)
    totals = _convert_all(job, job.options.num_workers)
    if totals.problems:
        raise bad_input(totals.problems, job.annotations)
    statistics = _join(job, totals, out_jsonl)
    write_json(stats_path, without_other_splits(statistics))
    if provenance_path is not None:
        made_from = {**read_provenance(images_dir), "image_dirs": identity_of(job.source.image_dirs)}
        write_json(provenance_path, made_from)
    job.index = None  # closes its files: on NFS, a folder with an open file cannot be removed
    shutil.rmtree(job.chunks.parent)
    for text in notices(statistics):
        notice(text)


def convert_shard(
    manifest: str | Path,
    out_jsonl: str | Path,
    images_dir: str | Path,
    options: ConvertOptions,
    max_blocks: int,
    shard: int,
    shards: int,
) -> None:
    """Convert every `shards`-th chunk of what `convert` with the same arguments converts, starting with `shard` (1..).

    The jobs of all shards may run at the same time on several machines with a common file system. `convert` then finds
    their chunks; it converts those that are missing, and its output does not depend on the shards.
    """
    job = _prepare(Path(manifest), Path(out_jsonl), Path(images_dir), options, max_blocks)
    totals = _convert_all(job, job.options.num_workers, shard, shards)
    if totals.problems:
        raise bad_input(totals.problems, job.annotations)


def _prepare(
    manifest: Path, out_jsonl: Path, images_dir: Path, options: ConvertOptions, max_blocks: int
) -> ConversionJob:
    """The job of a conversion, whose folders exist and hold nothing of another conversion."""
    options = ConvertOptions.from_config(msgspec.to_builtins(options))  # validates them
    source = load_source(manifest)
    base = manifest.parent
    image_dirs = [base / folder for folder in source.image_dirs]
    key = _job_key(source, image_dirs, options, max_blocks)
    out_jsonl.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(out_jsonl.with_name(f".{out_jsonl.name}.prepare")):  # shards start at the same time
        prepare_images_dir(images_dir, *_provenance(source, image_dirs, options, max_blocks))
        chunks = chunk_cache.chunk_folder(out_jsonl, key)
    return ConversionJob(
        source=source,
        annotations=base / source.annotations,
        image_dirs=[str(folder) for folder in image_dirs],
        folder_names=_unique_names(image_dirs),
        options=options,
        max_blocks=max_blocks,
        images_dir=str(images_dir),
        image_prefix=f"{os.path.relpath(images_dir, out_jsonl.parent)}/".removeprefix("./"),
        chunks=chunks,
    )


def _join(job: ConversionJob, totals: ConversionCounts, out_jsonl: Path) -> dict[str, Any]:
    """Write the records of all chunks; returns the statistics. DataError, and no file, if these cannot be used."""
    written = chunk_cache.join_chunks(out_jsonl, job.chunks, chunk_count(job.index))
    statistics = summary(totals, job.source, len(job.descriptions))
    try:
        if not written:
            fix, found = "correct the problems counted under `dropped`", statistics["images"]
            raise DataError(located("no image could be used", file=job.annotations, found=found, fix=fix))
        check_not_emptied(statistics, job.annotations)
        if job.options.on_duplicate != "ignore" and (
            repeated := duplicate_images(totals.keys, Path(job.images_dir), out_jsonl)
        ):
            statistics["duplicate_images"] = repeated
            check_duplicates(statistics, job.options.on_duplicate, job.annotations)
    except DataError:
        out_jsonl.unlink(missing_ok=True)
        raise
    return statistics


def _convert_all(job: ConversionJob, workers: int, shard: int = 1, shards: int = 1) -> ConversionCounts:
    """Index the annotation file and convert the chunks of a shard, by default all; returns their counts."""

    def own() -> range:
        return range(shard - 1, chunk_count(job.index), shards)

    images.reuse_memory()
    if workers <= 1:
        totals = _start(job, build_index(job.annotations, folder=job.chunks), workers, shards)
        return _add_up(totals, job.index, own(), (convert_chunk(job, k) for k in own()))
    try:
        with _pool(workers, initializer=end_with_parent) as pool:
            mapper = functools.partial(_ordered_map, pool, 4 * workers)
            totals = _start(job, build_index(job.annotations, mapper, job.chunks), workers, shards)
        with _pool(workers, initializer=_set_worker_job, initargs=(job,)) as pool:
            return _add_up(totals, job.index, own(), pool.map(_convert_in_worker, own()))
    except BrokenProcessPool as error:
        fix = "give it more memory, or set fewer workers; the next run keeps finished chunks"
        raise DataError(located("a conversion process was killed", file=job.annotations, fix=fix)) from error


def _start(job: ConversionJob, index: AnnotationIndex, workers: int, shards: int) -> ConversionCounts:
    """Complete the job, check it and announce it; returns the counts of the elements that belong to no image."""
    job.index = index
    _check_pixels(index)
    job.same_file, job.alike = shared_names(job)
    table = load_categories(job.annotations, job.options.on_bad, index.categories)
    job.descriptions = descriptions(table, job.options.desc)
    unusable, totals = unusable_elements(index), ConversionCounts(keys=array("Q"))
    if job.options.on_bad == "error" and (problems := [*unusable, *bad_entries(job)]):
        raise bad_input(problems, job.annotations)
    for item in (*unusable, *skipped_lines(index)):
        totals.drop_listed(item)
    _announce(job, workers, shards)
    return totals


def _check_pixels(index: AnnotationIndex) -> None:
    """DataError if all boxes are within 0..1: then they are fractions of the image, not pixels."""
    count, normalised = 0, False
    for block in all_annotations(index):
        boxes = block.boxes[(block.boxes[:, 2:] > 0).all(axis=1)]
        corners = xywh_to_xyxy(boxes)
        if not ((corners >= 0) & (corners <= 1)).all():
            return
        count, normalised = count + len(boxes), normalised or bool(looks_normalised(boxes).any())
    if normalised:
        fix = "multiply them by the width and height of their image: COCO boxes are x, y, width, height in pixels"
        problem = f"all {count:,} boxes are within 0..1: they are normalised, not in pixels"
        raise DataError(located(problem, file=index.path, field="annotations.bbox", fix=fix))


def _announce(job: ConversionJob, workers: int, shards: int) -> None:
    """Announce the time and disk that the remaining chunks need; SpaceError if the disk is too small."""
    total = len(job.index) // shards
    remaining = (len(job.index) - chunk_cache.stored_chunks(job.chunks) * chunk_size(job.index)) // shards
    fd = os.open(job.index.path, os.O_RDONLY)

    def process(i: int, scratch: str) -> None:
        [image] = read_images(fd, job.index, i, i + 1)
        with contextlib.suppress(images.ImageError):  # reported when its chunk is converted
            convert_image(msgspec.structs.replace(job, images_dir=scratch), image)

    try:
        announce_measured("convert", "images", total, remaining, workers, Path(job.images_dir), process)
    finally:
        os.close(fd)


def _ordered_map(pool: Executor, pending: int, function: Callable, items: Iterable) -> Iterator[Any]:
    """As `pool.map`, with at most `pending` results in memory."""
    futures: deque[Future] = deque()
    for item in items:
        if len(futures) == pending:
            yield futures.popleft().result()
        futures.append(pool.submit(function, item))
    while futures:
        yield futures.popleft().result()


def _pool(workers: int, **options) -> ProcessPoolExecutor:
    """Forked processes, which share this one's memory; if one is killed, the pool raises an error."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), **options)


def _add_up(
    totals: ConversionCounts,
    index: AnnotationIndex,
    numbers: range,
    chunks: Iterable[tuple[ConversionCounts, dict[str, int]]],
) -> ConversionCounts:
    """Add the counts of `chunks`, which are those with the given `numbers`, to `totals`, in their order."""
    size = chunk_size(index)
    progress = Progress("convert", sum(min(size, len(index) - k * size) for k in numbers), "images")
    outcomes: Counter = Counter()
    for counts, chunk_outcomes in chunks:
        totals.add(counts)
        outcomes.update(chunk_outcomes)
        if counts.problems and len(counts.problems) == len(totals.problems):
            print(f"a problem, more may follow: {bad_input(counts.problems[:1], index.path)}", file=sys.stderr)
        progress.add(counts.counts["images listed"])
    progress.finish()
    print("images: " + ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items())), file=sys.stderr)
    return totals


_worker_job: ConversionJob | None = None


def _set_worker_job(job: ConversionJob) -> None:
    global _worker_job  # noqa: PLW0603 -- set once in each worker process
    _worker_job = job
    end_with_parent()


def _convert_in_worker(k: int) -> tuple[ConversionCounts, dict[str, int]]:
    assert _worker_job is not None
    return convert_chunk(_worker_job, k)


def _unique_names(folders: list[Path]) -> list[str]:
    """A name for each source folder, with a number where two have the same name."""
    names = [folder.name or "images" for folder in folders]
    known = [name.casefold() for name in names]
    unique: list[str] = []
    for i, name in enumerate(names):
        candidate = name if known.count(name.casefold()) == 1 else f"{i}_{name}"
        while candidate != name and candidate.casefold() in (*known, *map(str.casefold, unique)):
            candidate = f"{i}_{candidate}"
        unique.append(candidate)
    return unique


def _provenance(
    source: Source, image_dirs: list[Path], options: ConvertOptions, max_blocks: int
) -> tuple[dict[str, str], dict[str, object]]:
    """(names of dataset and split, everything that decides the pixels of the split's images)."""
    made_from = {
        "image_dirs": identity_of([_location(d) for d in image_dirs]),  # hashed: names may contain that of a user
        "max_blocks": max_blocks,
        **{k: getattr(options, k) for k in ("factor", "min_blocks", "resize", "jpeg_quality", "exif")},
        "resampler": images.resampler_version(),
        "code": code_identity(images.__name__),
    }
    return {"dataset": source.dataset, "split": source.split}, made_from


def _location(folder: Path) -> str:
    """The path of a folder, relative if it lies in the working directory, which may be copied to another place."""
    resolved, base = folder.resolve(), Path.cwd().resolve()
    return str(resolved.relative_to(base) if resolved.is_relative_to(base) else resolved)


def _job_key(source: Source, image_dirs: list[Path], options: ConvertOptions, max_blocks: int) -> str:
    """Identity of a conversion: chunks of another one are not reused."""
    key = {
        "source": msgspec.to_builtins(source),
        "image_dirs": [str(d.resolve()) for d in image_dirs],
        "options": msgspec.to_builtins(options) | {"num_workers": None},
        "max_blocks": max_blocks,
        "chunk": tuning.IMAGES_PER_CHUNK,
        "code": code_identity(__name__),
    }
    return identity_of(key)
