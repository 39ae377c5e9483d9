"""Whether a model uses the image: the likelihood of annotated coordinates with the right image and without it.

Under teacher forcing a model can have small errors although it only continues the pattern of the earlier objects. Such
a model gives the annotated coordinates about the same probability when it sees another image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import torch
from PIL import Image

from coordexp.answers.formats import format_of
from coordexp.datasets.categories import Category
from coordexp.datasets.tokenize import to_tokens
from coordexp.evaluation.evaluate import score
from coordexp.evaluation.ground_truth import ground_truth_from_records
from coordexp.evaluation.image_use import AnswerUse, ImageUse, agreement
from coordexp.evaluation.options import EvaluateOptions
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.jobs import ImageTask, run_tasks
from coordexp.inference.predict import load_image
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt, open_prompt, prompts_of
from coordexp.records import Object, Prediction, Record
from coordexp.runtime.errors import ConfigError, DataError, located

GREY = (127, 127, 127)


@torch.inference_mode()
def measure_image_use(
    predictor: Predictor,
    records: Sequence[Record],
    folder: Path,
    emit_norm: EmitNorm = "norm1000",
    categories: Sequence[str] | None = None,
) -> ImageUse:
    """Measure on `records` in any coordinate space; image paths are relative to `folder`.

    Prompts are those of `predictor.options`; the answer to each lists the objects that the prompt asks for, in the
    order of the record. ConfigError for a model without coordinate tokens, DataError for fewer than two images with
    objects.
    """
    if predictor.ids is None:
        fix = "use a model with coordinate tokens"
        raise ConfigError(located("text integers have no coordinate distributions", fix=fix))
    answers = [_answers(predictor, record, emit_norm, categories) for record in records]
    measured = [pair for pair in zip(records, answers, strict=True) if pair[1]]
    if len(measured) < 2:
        problem = "too few images with objects that the prompts ask for"
        raise DataError(located(problem, expected="at least 2", found=len(measured)))
    total, count = torch.zeros(3, dtype=torch.float64), 0
    for n, (record, pairs) in enumerate(measured):
        images = _images(record, measured[(n + 1) % len(measured)][0], folder)
        for prompt, answer in pairs:
            logprobs = _coordinate_logprobs(predictor, images, prompt, answer)
            total += logprobs.sum(-1, dtype=torch.float64).cpu()
            count += logprobs.shape[1]
    right, other_image, blank = (total / count).tolist()
    return ImageUse(len(measured), count, right, other_image, blank)


Swapped = tuple[Record, list[Prediction]]  # a record, and its predictions with the right, another and a blank image


def answer_swapped_images(
    predictor: Predictor,
    records: Sequence[Record],
    folder: Path,
    emit_norm: EmitNorm = "norm1000",
    categories: Sequence[str] | None = None,
) -> list[Swapped]:
    """Answers to the prompts of each record with the right image, with that of the next record, and with a grey one."""
    tasks = []
    for n, record in enumerate(records):
        images = _images(record, records[(n + 1) % len(records)], folder)
        prompts = prompts_of(record, predictor.options, categories) or [open_prompt(predictor.options, categories)]
        tasks += [ImageTask(3 * n + k, record, prompts, partial(_same, image)) for k, image in enumerate(images)]
    done = run_tasks(predictor, tasks, emit_norm)
    return [(record, [done[3 * n + k] for k in range(3)]) for n, record in enumerate(records)]


def score_swapped_images(swapped: Sequence[Swapped], categories: list[Category]) -> AnswerUse:
    """AP of the answers with each kind of image, by COCO's rules, and the agreement of the first two.

    For answers to phrases, the fraction of exact answers (`exact_50`) replaces AP.
    """
    ground_truth = ground_truth_from_records([record for record, _ in swapped], categories, federated=False)
    options = EvaluateOptions(protocols=("coco",), bootstrap=0, examples=0)
    found = []
    for k in range(3):
        rows = [(f"prediction {n}", predictions[k]) for n, (_, predictions) in enumerate(swapped)]
        scores = score(rows, ground_truth, options, where="answers to swapped images")
        found.append(scores.phrases.metrics["exact_50"] if scores.phrases else scores.protocols["coco"].metrics["AP"])
    same = [agreement(right.detections, other.detections) for _, (right, other, _) in swapped]
    return AnswerUse(len(swapped), *found, agreement=sum(same) / len(same))


def _images(record: Record, other: Record, folder: Path) -> list[Image.Image]:
    """The image of a record, that of another one in the same size, and a grey one."""
    image, another = (
        load_image(folder / r.images[0], (r.width, r.height), r.metadata.image_id) for r in (record, other)
    )
    return [image, another.resize(image.size), Image.new("RGB", image.size, GREY)]


def _same(image: Image.Image) -> Image.Image:
    return image


def _answers(
    predictor: Predictor, record: Record, emit_norm: EmitNorm, categories: Sequence[str] | None
) -> list[tuple[Prompt, str]]:
    """The prompts that ask for objects of the record, each with its answer."""
    tokens = record if record.coord_space == "token" else to_tokens(record, emit_norm)
    found = []
    for prompt in prompts_of(record, predictor.options, categories):
        objects = [obj for obj in tokens.objects if prompt.categories is None or obj.desc in prompt.categories]
        if prompt.phrase is not None:
            objects = _described(tokens, prompt.phrase)
        if objects:
            answer_format = format_of(predictor.style)
            found.append((prompt, answer_format.render(answer_format.arrange(objects))))
    return found


def _described(record: Record, text: str) -> list[Object]:
    """The objects of the first phrase with this text, with the text as their description."""
    indices = next(phrase.objects for phrase in record.phrases if phrase.text == text)
    return [msgspec.structs.replace(record.objects[i], desc=text) for i in indices]


def _coordinate_logprobs(
    predictor: Predictor, images: Sequence[Image.Image], prompt: Prompt, answer: str
) -> torch.Tensor:
    """Log probabilities of the coordinates in `answer` with each of the B images, among all bins; float32 [B, S]."""
    ids = predictor.ids
    assert ids is not None
    inputs = predictor.encode(images, [predictor.prompt_text(prompt.categories, prompt.phrase) + answer] * len(images))
    tokens = inputs["input_ids"]
    slots = ((tokens[0] >= ids.start) & (tokens[0] <= ids.end)).nonzero()[:, 0]
    hidden = predictor.model.model(**inputs, use_cache=False).last_hidden_state[:, slots - 1]
    logits = predictor.model.get_output_embeddings()(hidden)[..., ids.start : ids.end + 1]
    logprobs = (logits.float() / predictor.options.temperature).log_softmax(-1)
    return logprobs.gather(-1, (tokens[:, slots] - ids.start)[..., None])[..., 0]
