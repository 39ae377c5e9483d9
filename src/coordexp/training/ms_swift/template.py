"""The Qwen3-VL template with unquantised targets beside the labels.

A sample is rendered by `coordexp.answers.render`, encoded by ms-swift's own template, and carries the exact
coordinates of its answer to the loss; the collator lays them end to end in the order of the labels.
"""

from __future__ import annotations

from typing import Any

import msgspec
from PIL import Image
from swift.template import MaxLengthError, register_template
from swift.template.templates.qwen import Qwen3VLTemplate, QwenTemplateMeta
from swift.utils import get_logger

from coordexp.answers import render as prompt
from coordexp.datasets.samples import Sample
from coordexp.datasets.tokenize import to_tokens
from coordexp.geometry.norm1000 import legacy_targets
from coordexp.losses.set_targets import branches
from coordexp.losses.targets import IGNORE
from coordexp.modeling.vocab import coord_ids
from coordexp.records import COORD_BINS, Object, Record
from coordexp.runtime.errors import DataError
from coordexp.training.augmentation import augment
from coordexp.training.collate import AnswerTargets, as_targets, collate
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.dataset import TRAIN, current_epoch, sample_of

NAME = "coordexp"
TARGETS = "coord_targets"
LONG_FIX = "raise template.max_length, lower the pixel budget, or set template.truncation_strategy: delete"

logger = get_logger()


class LongSample(DataError):
    """A sample over `template.max_length`."""


def register() -> None:
    """Make `--template coordexp` and `--template coordexp_delete` known to ms-swift."""
    for name, cls in ((NAME, CoordTemplate), (f"{NAME}_delete", DeletingTemplate)):
        meta = QwenTemplateMeta(name, template_cls=cls, default_system=None, thinking_prefix="<think>\n")
        register_template(meta, exist_ok=True)


class CoordTemplate(Qwen3VLTemplate):
    """Encodes rows of `coordexp.training.ms_swift.dataset`; any other input goes through ms-swift unchanged."""

    def init_processor(self, processor: Any) -> None:
        """Take ids from the tokenizer, once; ms-swift's own for images are those of the published vocabulary."""
        super().init_processor(processor)
        if processor is not None:
            pads = ["<|image_pad|>", "<|video_pad|>"]
            self.image_token_id, self.video_token_id = self.tokenizer.convert_tokens_to_ids(pads)
            # a base without the tokens can be taught in text integers: then no label is a coordinate slot
            enabled = custom_section().coord_tokens.enabled
            self.coord_start = coord_ids(self.tokenizer).start if enabled else len(self.tokenizer)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A row as input ids, labels, images, and the targets of its coordinate slots."""
        if not (isinstance(inputs, dict) and "index" in inputs):
            return super().encode(inputs, *args, **kwargs)
        sample, image, cropped = changed(inputs, self.tile)
        encoded = self.encode_sample(sample._replace(record=as_tokens(sample.record)), image, **kwargs)
        encoded[TARGETS] = encoded[TARGETS]._replace(cropped=cropped)
        return encoded

    @property
    def tile(self) -> int:
        """Side in pixels of a tile, which one token stands for."""
        return self.processor.image_processor.patch_size * self.processor.image_processor.merge_size

    def encode_sample(self, sample: Sample, image: Image.Image | None = None, **kwargs: Any) -> dict[str, Any]:
        """The same for a sample in token space; `image` stands in for the file that it names."""
        try:
            encoded = super().encode(as_messages(sample, image), **kwargs)
        except MaxLengthError as error:
            raise LongSample(f"{sample.place}: longer than template.max_length: {error}\n  -> {LONG_FIX}") from error
        check_image(encoded, sample, self.processor.image_processor.patch_size)
        encoded[TARGETS] = self._targets(encoded["labels"], sample)
        return encoded

    def _targets(self, labels: list[int], sample: Sample) -> AnswerTargets:
        section, objects = custom_section(), in_codec_space(sample.record)
        answer = [label for label in labels if label != IGNORE]
        if not section.coord_tokens.enabled:
            return AnswerTargets.of(sample.place, [], len(answer))
        is_slot = [self.coord_start <= label < self.coord_start + COORD_BINS for label in answer]
        expected = sum(len(obj.coords) for obj in objects)
        if sum(is_slot) != expected:
            raise DataError(
                f"{sample.place}: {expected} coordinates, but {sum(is_slot)} supervised coordinate tokens\n"
                "  -> a text in this record holds coordinate tokens, or the sample was cut: raise template.max_length"
            )
        targets = AnswerTargets.of(sample.place, objects, len(answer))
        if section.loss.set_targets == "none":
            return targets
        return targets._replace(branches=branches(objects, answer, is_slot, style_of(sample), self._tokenize))

    def _data_collator(self, batch: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
        targets = [sample.pop(TARGETS, None) for sample in batch]
        collated = super()._data_collator(batch, **kwargs)
        if all(target is not None for target in targets):
            collated[TARGETS] = collate(targets)
        return collated

    def compute_sft_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """Run the model; the targets travel to the loss on its outputs."""
        targets = inputs.pop(TARGETS, None)
        outputs = super().compute_sft_loss(model, inputs, **kwargs)
        if targets is not None:
            outputs.coord_targets = as_targets(targets)
            outputs.places, outputs.tally = targets["places"], targets["tally"]
        return outputs


class DeletingTemplate(CoordTemplate):
    """Leaves out samples over `template.max_length`; the next sample of the epoch stands in, counted and named."""

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The first sample from this row on that is short enough, and whether that is another than the row's own."""
        if not (isinstance(inputs, dict) and "index" in inputs):
            return super().encode(inputs, *args, **kwargs)
        count = inputs["count"]
        for further in range(count):
            row = {**inputs, "index": (inputs["index"] + further) % count}
            try:
                encoded = super().encode(row, *args, **kwargs)
            except LongSample as error:
                logger.warning_once(f"left out: {str(error).splitlines()[0]}")
                continue
            encoded[TARGETS] = encoded[TARGETS]._replace(left_out=int(further > 0))  # the others are rows of their own
            return encoded
        raise DataError(f"every sample is over template.max_length {self.max_length}\n  -> {LONG_FIX}")


def as_tokens(record: Record) -> Record:
    """The record in token space: as it is, or quantised from `norm` when the recipe reads pixel files."""
    return record if record.coord_space == "token" else to_tokens(record, custom_section().emit_norm)


def in_codec_space(record: Record) -> list[Object]:
    """Objects whose `norm` is what their slots are held to, in units of the recipe's codec."""
    if custom_section().emit_norm == "norm1000":
        return record.objects
    size = (record.width, record.height)
    return [msgspec.structs.replace(obj, norm=legacy_targets(obj.norm, size)) for obj in record.objects]


def style_of(sample: Sample) -> prompt.PromptStyle:
    """The recipe's style under what the sample's source sets for itself."""
    return msgspec.structs.replace(custom_section().style, **sample.style)


def changed(row: dict[str, Any], tile: int) -> tuple[Sample, Image.Image | None, int]:
    """The sample of a row, augmented when it is one to train on: with its new image, and the objects cut away."""
    sample, section = sample_of(row), custom_section()
    if row["split"] != TRAIN or not section.augmentation.active:
        return sample, None, 0
    seed = (section.sample_seed, current_epoch(), row["index"])
    return augment(sample, section.augmentation, seed, tile, keep_order=section.object_ordering == "random")


def as_messages(sample: Sample, image: Image.Image | None = None) -> dict[str, Any]:
    """ms-swift's row: chat messages with the rendered answer, and the image or its path."""
    style = style_of(sample)
    messages = prompt.chat(style, sample.categories, prompt.render_answer(sample.record.objects, style))
    return {"messages": messages, "images": [image or str(sample.path.parent / sample.record.images[0])]}


def check_image(encoded: dict[str, Any], sample: Sample, patch: int) -> None:
    """DataError when the image was not encoded at the size that its record says (pixels)."""
    height, width = (side * patch for side in encoded["image_grid_thw"][0].tolist()[1:])
    if (width, height) != (sample.record.width, sample.record.height):
        raise DataError(
            f"{sample.place}: image encoded as {width}x{height}, "
            f"but the record says {sample.record.width}x{sample.record.height}\n"
            "  -> the image file and the record disagree, or the processor resized it: convert again"
        )
