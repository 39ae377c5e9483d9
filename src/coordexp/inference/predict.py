"""Predictions for a records file: sharded, batched, resumable, in the order of the records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.datasets.image_provenance import provenance_of_records
from coordexp.datasets.images import ImageError, open_image
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.engines import check_engine, open_predictor
from coordexp.inference.jobs import ImageTask, Job, jobs_of, run_jobs, run_tasks
from coordexp.inference.options import PredictOptions, score_options
from coordexp.inference.overrides import announce_overrides
from coordexp.inference.predictor import BasePredictor
from coordexp.inference.prompts import check_category_grids, open_prompt, prompts_of
from coordexp.inference.resumable_writer import ResumableWriter
from coordexp.inference.scores import build_prediction
from coordexp.modeling import checkpoint_files
from coordexp.modeling.checksums import verify_checksums
from coordexp.records import Prediction, Record, read_records, software_file
from coordexp.runtime.code_identity import code_identity, content_identity, file_identity
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.estimates import announce
from coordexp.runtime.io import write_json, write_jsonl
from coordexp.runtime.progress import Progress
from coordexp.runtime.software import describe

WITHOUT_EFFECT = {"split", "batch_size", "shards"}  # options that may differ when a killed shard resumes


def predict(
    model_dir: str | Path,
    records_jsonl: str | Path,
    out: str | Path,
    options: PredictOptions,
    style: PromptStyle,
    categories: Sequence[str] | None = None,
    emit_norm: EmitNorm = "norm1000",
    *,
    shard: int = 0,
    shards: int = 1,
    device: str | None = None,
) -> dict[str, float]:
    """Write one `records.Prediction` per record of a shard to `out`; returns counts and rates of this run.

    records_jsonl: pixel-space records, whose image sizes are on the model's grid.
    categories: category names, for the protocols that need them.
    shard, shards: the shard consists of every `shards`-th record, starting from record `shard` (0-based);
        `gather.gather` merges shards.

    `out` is written at the end, with a file beside it that names the software (`records.software_file`). Until then,
    finished predictions are in a hidden file next to it, from which the same call resumes. ConfigError, DataError or
    ModelError for inputs that cannot be used.
    """
    if not 0 <= shard < shards:
        raise ConfigError(f"predict: expected 0 <= shard < shards, found shard {shard} of {shards}")
    check_engine(options)
    check_category_grids(options, categories)
    records_jsonl, out = Path(records_jsonl), Path(out)
    records = [r for n, r in enumerate(read_records(records_jsonl, "pixel")) if n % shards == shard]
    provenance = provenance_of_records(records_jsonl)
    announce_overrides(model_dir, options, style, emit_norm, provenance)
    identity = {
        "model": verify_checksums(model_dir) or content_identity(checkpoint_files.files(Path(model_dir))),
        "records": file_identity(records_jsonl),
        "images": provenance,
        "options": {k: v for k, v in msgspec.to_builtins(options).items() if k not in WITHOUT_EFFECT},
        "style": msgspec.to_builtins(style),
        "categories": list(categories or ()),
        "emit_norm": emit_norm,
        "shard": [shard, shards],
        "code": code_identity(__name__),
    }
    writer = ResumableWriter(out, identity)
    resumed = len(writer)
    jobs = _jobs(records, options, categories, records_jsonl.parent, writer)
    announce("predict", len(records) - len(writer), "images", basis=f"{len(jobs):,} prompts")
    progress = Progress("predict", len(records), "images", counted=("objects", "tokens"))
    progress.resume_at(len(writer))
    if resumed:
        progress.note(f"resuming, {resumed} of {len(records)} images are done")
    if jobs:
        predictor = open_predictor(model_dir, options, style, device)
        writer.add_batches(run_jobs(predictor, jobs, emit_norm), progress)
    write_jsonl(out, writer.ordered(len(records)))
    write_json(software_file(out), [describe(identity["code"]) | {"score_options": score_options(options)}])
    writer.remove()
    return progress.finish()


def predict_records(
    predictor: BasePredictor,
    records: Sequence[Record],
    folder: Path,
    emit_norm: EmitNorm = "norm1000",
    categories: Sequence[str] | None = None,
) -> list[Prediction]:
    """Predictions for `records` by a model in memory, in their order; image paths are relative to `folder`.

    categories: category names, for the protocols that need them.
    """
    options = predictor.options
    otherwise = [] if options.protocol == "phrases" else [open_prompt(options, categories)]
    prompts = (prompts_of(record, options, categories) or otherwise for record in records)
    tasks = [
        ImageTask(n, record, parts, partial(_image, record, folder))
        for n, (record, parts) in enumerate(zip(records, prompts, strict=True))
    ]
    done = run_tasks(predictor, tasks, emit_norm)
    return [done.get(n) or build_prediction([], record, options, emit_norm) for n, record in enumerate(records)]


def load_image(path: Path, size: tuple[int, int], image_id: int | str) -> Image.Image:
    """The image at `path` as RGB; DataError naming file and `image_id` if it is unreadable or not of `size`."""
    try:
        with open_image(path) as opened:
            image = opened.convert("RGB")
    except ImageError as error:
        fix = "run `coordexp validate` on the records, or convert the dataset again"
        raise DataError(located(f"cannot read image {image_id}: {error}", file=path, fix=fix)) from error
    if image.size != size:
        facts = {"field": "width, height", "expected": size, "found": image.size}
        fix = "convert the dataset again"
        problem = f"image {image_id} does not have the size that its record states"
        raise DataError(located(problem, file=path, **facts, fix=fix))
    return image


def _jobs(
    records: list[Record],
    options: PredictOptions,
    categories: Sequence[str] | None,
    folder: Path,
    writer: ResumableWriter,
) -> list[Job]:
    """Prompts still to run, larger images first; a record without prompts gets an empty prediction at once."""
    tasks: list[ImageTask] = []
    for position, record in enumerate(records):
        if position in writer:
            continue
        prompts = prompts_of(record, options, categories)
        if not prompts:
            writer.add([(position, build_prediction([], record, options, "norm1000"))])
        tasks.append(ImageTask(position, record, prompts, partial(_image, record, folder)))
    return sorted(
        jobs_of(tasks, options), key=lambda job: (-job.record.width * job.record.height, job.position, job.part)
    )


def _image(record: Record, folder: Path) -> Image.Image:
    return load_image(folder / record.images[0], (record.width, record.height), record.metadata.image_id)
