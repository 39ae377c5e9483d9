"""Whether a model uses the image: the likelihood of annotated coordinates with the right image and without it.

Under teacher forcing a model can have small errors although it only continues the pattern of the earlier objects. Such
a model gives the annotated coordinates about the same probability when it sees another image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from PIL import Image

from coordexp.answers.formats import format_of
from coordexp.datasets.tokenize import to_tokens
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.predict import load_image
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt, prompts_of
from coordexp.records import Record
from coordexp.runtime.errors import ConfigError, DataError, located

MIN_GAIN = 0.1  # nats per coordinate: the right image makes each coordinate 10% more likely
GREY = (127, 127, 127)


class ImageUse(msgspec.Struct, frozen=True):
    """Mean log probability (natural) of the annotated coordinate bins, teacher-forced, over all coordinates.

    right: with the image of the record. other: with the image of another record, in the same size. blank: with a grey
    image. images, coordinates: how many were measured.
    """

    images: int
    coordinates: int
    right: float
    other: float
    blank: float

    @property
    def gain(self) -> float:
        """What the right image adds to the log probability of a coordinate, over the better of the other two."""
        return self.right - max(self.other, self.blank)

    @property
    def uses_image(self) -> bool:
        """Whether `gain` is at least `MIN_GAIN`."""
        return self.gain >= MIN_GAIN


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
        other = measured[(n + 1) % len(measured)][0]
        image, another = (
            load_image(folder / r.images[0], (r.width, r.height), r.metadata.image_id) for r in (record, other)
        )
        images = [image, another.resize(image.size), Image.new("RGB", image.size, GREY)]
        for prompt, answer in pairs:
            logprobs = _coordinate_logprobs(predictor, images, prompt, answer)
            total += logprobs.sum(-1, dtype=torch.float64).cpu()
            count += logprobs.shape[1]
    right, other_image, blank = (total / count).tolist()
    return ImageUse(len(measured), count, right, other_image, blank)


def _answers(
    predictor: Predictor, record: Record, emit_norm: EmitNorm, categories: Sequence[str] | None
) -> list[tuple[Prompt, str]]:
    """The prompts that ask for objects of the record, each with its answer."""
    tokens = record if record.coord_space == "token" else to_tokens(record, emit_norm)
    found = []
    for prompt in prompts_of(record, predictor.options, categories):
        objects = [obj for obj in tokens.objects if prompt.categories is None or obj.desc in prompt.categories]
        if objects:
            answer_format = format_of(predictor.style)
            found.append((prompt, answer_format.render(answer_format.arrange(objects))))
    return found


def _coordinate_logprobs(
    predictor: Predictor, images: Sequence[Image.Image], prompt: Prompt, answer: str
) -> torch.Tensor:
    """Log probabilities of the coordinates in `answer` with each of the B images, among all bins; float32 [B, S]."""
    ids = predictor.ids
    assert ids is not None
    inputs = predictor.encode(images, [predictor.prompt_text(prompt.categories) + answer] * len(images))
    tokens = inputs["input_ids"]
    slots = ((tokens[0] >= ids.start) & (tokens[0] <= ids.end)).nonzero()[:, 0]
    logits = predictor.model(**inputs, use_cache=False, logits_to_keep=slots - 1).logits[..., ids.start : ids.end + 1]
    logprobs = (logits.float() / predictor.options.temperature).log_softmax(-1)
    return logprobs.gather(-1, (tokens[:, slots] - ids.start)[..., None])[..., 0]
