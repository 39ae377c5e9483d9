"""Prompts about images or their slices as jobs in batches; all answers about one image become one prediction."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple

import msgspec
import torch
from PIL import Image

from coordexp.datasets.images import resample
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.geometry.resize import grid_size
from coordexp.geometry.slices import Slice, slices_of
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.merge_slices import SlicePrediction, merge_slices
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import BasePredictor, Request
from coordexp.inference.prompts import Prompt
from coordexp.inference.scores import build_prediction
from coordexp.records import Prediction, Record
from coordexp.runtime.errors import DataError, located

SHARED_IMAGES = 4  # images in memory whose slices are being predicted


class Job(NamedTuple):
    """One prompt of one record: `position` is the record's in the shard, `part` the prompt's among the record's.

    load: loads the image in the size that the record states; called once per job, possibly in another thread.
    window: the slice of the image that the prompt is about; None: the whole image, in the size that the model sees.
    """

    position: int
    part: int
    record: Record
    prompt: Prompt
    load: Callable[[], Image.Image]
    window: Slice | None = None


class ImageTask(NamedTuple):
    """An image and the prompts to ask about it, or about each of its slices; the fields are those of `Job`."""

    position: int
    record: Record
    prompts: Sequence[Prompt]
    load: Callable[[], Image.Image]


def jobs_of(tasks: Iterable[ImageTask], options: PredictOptions) -> list[Job]:
    """The jobs of images. With `options.slices`, the jobs of an image load it once as long as they are consecutive."""
    if options.slices is None:
        return [
            Job(task.position, part, task.record, prompt, task.load)
            for task in tasks
            for part, prompt in enumerate(task.prompts)
        ]
    by_position = {task.position: task for task in tasks}
    load = lru_cache(maxsize=SHARED_IMAGES)(lambda position: by_position[position].load())
    jobs: list[Job] = []
    for position, task in by_position.items():
        size = (task.record.width, task.record.height)
        asked: dict[Slice, list[Prompt]] = {}
        for prompt in task.prompts:
            names = prompt.categories or ()
            category = names[0] if len(names) == 1 else None
            for window in slices_of(size, task.record.metadata.source_width, options.slices, category):
                asked.setdefault(window, []).append(prompt)
        pairs = [(window, prompt) for window, prompts in asked.items() for prompt in prompts]
        jobs += [
            Job(position, part, task.record, prompt, partial(load, position), window)
            for part, (window, prompt) in enumerate(pairs)
        ]
    return jobs


def run_tasks(predictor: BasePredictor, tasks: Iterable[ImageTask], emit_norm: EmitNorm) -> dict[int, Prediction]:
    """The predictions for images by position; none for an image without prompts."""
    jobs = jobs_of(tasks, predictor.options)
    return dict(pair for rows in run_jobs(predictor, jobs, emit_norm) for pair in rows)


def run_jobs(
    predictor: BasePredictor, jobs: Sequence[Job], emit_norm: EmitNorm
) -> Iterator[list[tuple[int, Prediction]]]:
    """(position, prediction) of records as they are finished; the batch size is halved when memory runs out."""
    unfinished: dict[int, dict[tuple[int, int], tuple[Job, GenerationState, str]]] = {}
    parts = Counter(job.position for job in jobs)
    samples, capacity = predictor.options.samples, predictor.options.batch_size
    while jobs:
        requests = (Request(job, partial(_load, job, predictor), job.prompt, _identity(job)) for job in jobs)
        answered: Counter[tuple[int, int]] = Counter()
        try:
            for finished in predictor.stream(requests, capacity):
                rows = []
                for job, answer in finished:
                    answered[job.position, job.part] += 1
                    answers = unfinished.setdefault(job.position, {})
                    answers[job.part, answer.sample] = job, answer, predictor.text(answer)
                    if len(answers) == parts[job.position] * samples:
                        ordered = [answers[key] for key in sorted(unfinished.pop(job.position))]
                        rows.append((job.position, _prediction(ordered, predictor, emit_norm)))
                if rows:
                    yield rows
            return
        except torch.OutOfMemoryError:
            if capacity == 1:
                raise
            message = f"predict: out of memory with {capacity} answers at a time, retrying with {capacity // 2}"
            print(message, file=sys.stderr, flush=True)
        capacity //= 2
        torch.cuda.empty_cache()
        jobs = [job for job in jobs if answered[job.position, job.part] < samples]


def _identity(job: Job) -> tuple[int | str, ...]:
    return job.record.metadata.image_id, job.part


def _prediction(
    answers: Sequence[tuple[Job, GenerationState, str]], predictor: BasePredictor, emit_norm: EmitNorm
) -> Prediction:
    """The prediction for an image from the answers to all its prompts, in their order."""
    found = []
    record, options = answers[0][0].record, predictor.options
    for window, group in groupby(answers, key=lambda answer: answer[0].window):
        parts = list(group)
        seen = record
        if window is not None:
            width, height = _seen_size(parts[0][0], predictor)
            seen = msgspec.structs.replace(record, width=width, height=height)
        asked_for = [(answer, text, job.prompt.phrase) for job, answer, text in parts]
        prediction = build_prediction(asked_for, seen, options, emit_norm)
        if window is None or options.slices is None:
            return prediction
        names = [job.prompt.categories for job, _, _ in parts]
        asked = None if None in names else frozenset(name for given in names for name in given or ())
        found.append(SlicePrediction(window, prediction, asked))
    assert options.slices is not None
    return merge_slices(found, (record.width, record.height), options.slices)


def _load(job: Job, predictor: BasePredictor) -> Image.Image:
    """The image or slice of a job, in the size that the model sees."""
    image = job.load()
    if job.window is None:
        return image
    left, top, width, height = job.window
    return resample(image.crop((left, top, left + width, top + height)), _seen_size(job, predictor))


def _seen_size(job: Job, predictor: BasePredictor) -> tuple[int, int]:
    """(width, height) in pixels of the image or slice of a job as the model sees it."""
    record, window, options = job.record, job.window, predictor.options.slices
    if window is None or options is None:
        return record.width, record.height
    factor = predictor.factor
    budget = options.max_blocks or max((record.width // factor) * (record.height // factor), 1)
    try:
        return grid_size(window.width, window.height, "fill", factor=factor, max_blocks=budget, min_blocks=1)
    except ValueError as error:
        fix = "choose another number of columns and rows, or sizes"
        raise DataError(
            located(f"slice of image {record.metadata.image_id}: {error}", field="predict.slices", fix=fix)
        ) from error
