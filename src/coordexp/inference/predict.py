"""Records in, predictions out: sharded, batched, resumable, in the order of the records."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.datasets import image_provenance as made_by
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Checkpoint, Predictor
from coordexp.inference.prompts import Question, questions
from coordexp.inference.resumable_writer import ResumableWriter
from coordexp.inference.scores import drop_duplicates, read_answer
from coordexp.modeling import checkpoint_files
from coordexp.records import Detection, Prediction, Record, read_records
from coordexp.runtime.code_identity import code_identity, content_identity, file_identity
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.estimates import announce
from coordexp.runtime.io import write_jsonl
from coordexp.runtime.progress import Progress

WITHOUT_EFFECT = {"split", "batch_size", "shards"}  # options that may change when a killed shard goes on


class Job(NamedTuple):
    """One prompt of one record; `position` counts the shard's records, `part` the record's prompts."""

    position: int
    part: int
    record: Record
    question: Question


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
    """Write one `contract.Prediction` line for each record of the shard to `out`; the run's counts and rates.

    `records_jsonl` holds pixel-space records whose images lie on the model's grid. The shard is every
    `shards`-th record from `shard` (0-based) on; `gather.gather` puts shards together. `out` appears whole; until
    then finished rows lie in a hidden file beside it, and the same call goes on from there. `categories` are
    the names for the protocols that need them.
    """
    if not 0 <= shard < shards:
        raise ConfigError(f"predict: expected 0 <= shard < shards, found shard {shard} of {shards}")
    records_jsonl, out = Path(records_jsonl), Path(out)
    records = [r for n, r in enumerate(read_records(records_jsonl, "pixel")) if n % shards == shard]
    identity = {
        "model": content_identity(checkpoint_files.files(Path(model_dir))),
        "records": file_identity(records_jsonl),
        "images": made_by.beside(records_jsonl),
        "options": {k: v for k, v in msgspec.to_builtins(options).items() if k not in WITHOUT_EFFECT},
        "style": msgspec.to_builtins(style),
        "categories": list(categories or ()),
        "emit_norm": emit_norm,
        "shard": [shard, shards],
        "code": code_identity(__name__),
    }
    store = ResumableWriter(out, identity)
    jobs = _jobs(records, options, categories, store)
    basis = f"{len(jobs):,} prompts; the time left is reported with the first images"
    announce("predict", len(records) - len(store), "images", basis=basis)
    progress = Progress("predict", len(records), "images", counted=("objects", "tokens"))
    progress.resume_at(len(store))
    if len(store):
        progress.note(f"continuing with {len(store)} of {len(records)} images done")
    if jobs:
        checkpoint = Checkpoint(model_dir, options, style, device)
        for done in _run(checkpoint, jobs, records_jsonl.parent, emit_norm):
            store.add(done)
            objects = sum(len(prediction.detections) for _, prediction in done)
            progress.add(len(done), objects=objects, tokens=sum(len(prediction.token_ids) for _, prediction in done))
    write_jsonl(out, store.ordered(len(records)))
    store.remove()
    return progress.finish()


def predict_records(
    answerer: Predictor, records: Sequence[Record], folder: Path, emit_norm: EmitNorm = "norm1000"
) -> list[Prediction]:
    """Answers to the open prompt by a model in memory, in the order of the records; images lie under `folder`."""
    jobs = [Job(n, 0, record, questions(record, answerer.options, None)[0]) for n, record in enumerate(records)]
    done = dict(pair for finished in _run(answerer, jobs, folder, emit_norm) for pair in finished)
    return [done[n] for n in range(len(records))]


def load_image(path: Path, size: tuple[int, int], where: object) -> Image.Image:
    """An RGB image, decoded; DataError naming file and record when it is missing, broken or not of `size`."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fix = "run `coordexp validate` on the records, or convert the data set again"
        raise DataError(located(f"cannot read the image of image {where}: {error}", file=path, fix=fix)) from error
    if image.size != size:
        fix = "image file and record disagree: convert the data set again"
        raise DataError(
            located(
                f"image of image {where}",
                file=path,
                field="width, height",
                expected=size,
                found=image.size,
                fix=fix,
            )
        )
    return image


def combine(
    answers: Sequence[tuple[GenerationState, str]], record: Record, options: PredictOptions, emit_norm: EmitNorm
) -> Prediction:
    """One line for a record from the answers to its prompts, in their order."""
    detections: list[Detection] = []
    problems: dict[str, int] = {}
    for answer, text in answers:
        found, trouble = read_answer(answer, text, (record.width, record.height), emit_norm)
        detections += found
        for reason, count in trouble.items():
            problems[reason] = problems.get(reason, 0) + count
    unique, duplicates = drop_duplicates(detections, options.duplicate_iou)
    if duplicates:
        problems["duplicates_dropped" if options.drop_duplicates else "duplicates"] = duplicates
    return Prediction(
        image_id=record.metadata.image_id,
        source_width=record.metadata.source_width,
        source_height=record.metadata.source_height,
        protocol=options.protocol,
        finish="length" if any(answer.finish == "length" for answer, _ in answers) else "stop",
        text="\n".join(text for _, text in answers),
        detections=unique if options.drop_duplicates else detections,
        problems=problems,
        token_ids=[token for answer, _ in answers for token in answer.tokens],
        token_logprobs=[round(value, 4) + 0.0 for answer, _ in answers for value in answer.logprobs],
    )


def _jobs(
    records: list[Record], options: PredictOptions, categories: Sequence[str] | None, store: ResumableWriter
) -> list[Job]:
    """Prompts still to run, larger images first; records that ask nothing get their empty line at once."""
    jobs: list[Job] = []
    for position, record in enumerate(records):
        if position in store:
            continue
        asked = questions(record, options, categories)
        if not asked:
            store.add([(position, combine([], record, options, "norm1000"))])
        jobs += [Job(position, part, record, question) for part, question in enumerate(asked)]
    return sorted(jobs, key=lambda job: (-job.record.width * job.record.height, job.position, job.part))


def _run(
    checkpoint: Predictor, jobs: list[Job], folder: Path, emit_norm: EmitNorm
) -> Iterator[list[tuple[int, Prediction]]]:
    """Rows as they are completed; with fewer places from where the accelerator's memory was full."""
    waiting: dict[int, dict[int, tuple[GenerationState, str]]] = {}
    parts = Counter(job.position for job in jobs)
    capacity = checkpoint.options.batch_size
    while jobs:
        asked = ((job, _image(job.record, folder), job.question) for job in jobs)
        answered: set[tuple[int, int]] = set()
        try:
            for finished in checkpoint.stream(asked, capacity):
                done = []
                for job, answer in finished:
                    answered.add((job.position, job.part))
                    answers = waiting.setdefault(job.position, {})
                    answers[job.part] = answer, checkpoint.text(answer)
                    if len(answers) == parts[job.position]:
                        ordered = [answers[part] for part in sorted(waiting.pop(job.position))]
                        done.append((job.position, combine(ordered, job.record, checkpoint.options, emit_norm)))
                if done:
                    yield done
            return
        except torch.OutOfMemoryError:
            if capacity == 1:
                raise
            print(
                f"predict: out of memory with {capacity} at a time, trying {capacity // 2}", file=sys.stderr, flush=True
            )
        capacity //= 2
        torch.cuda.empty_cache()
        jobs = [job for job in jobs if (job.position, job.part) not in answered]


def _image(record: Record, folder: Path) -> Image.Image:
    return load_image(folder / record.images[0], (record.width, record.height), record.metadata.image_id)
