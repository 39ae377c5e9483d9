"""Prompts about images as jobs, answered in batches; the answers about one image become one prediction."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image

from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.predictor import Predictor, Request
from coordexp.inference.prompts import Prompt
from coordexp.inference.scores import build_prediction
from coordexp.records import Prediction, Record


class Job(NamedTuple):
    """One prompt of one record: `position` is the record's in the shard, `part` the prompt's among the record's.

    load: loads the image in the size that the record states; called once per job, possibly in another thread.
    """

    position: int
    part: int
    record: Record
    prompt: Prompt
    load: Callable[[], Image.Image]


def run_jobs(predictor: Predictor, jobs: Sequence[Job], emit_norm: EmitNorm) -> Iterator[list[tuple[int, Prediction]]]:
    """(position, prediction) of records as they are finished; the batch size is halved when memory runs out."""
    unfinished: dict[int, dict[int, tuple[GenerationState, str]]] = {}
    parts = Counter(job.position for job in jobs)
    capacity = predictor.options.batch_size
    while jobs:
        requests = (Request(job, job.load, job.prompt) for job in jobs)
        answered: set[tuple[int, int]] = set()
        try:
            for finished in predictor.stream(requests, capacity):
                rows = []
                for job, answer in finished:
                    answered.add((job.position, job.part))
                    answers = unfinished.setdefault(job.position, {})
                    answers[job.part] = answer, predictor.text(answer)
                    if len(answers) == parts[job.position]:
                        ordered = [answers[part] for part in sorted(unfinished.pop(job.position))]
                        prediction = build_prediction(ordered, job.record, predictor.options, emit_norm)
                        rows.append((job.position, prediction))
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
        jobs = [job for job in jobs if (job.position, job.part) not in answered]
