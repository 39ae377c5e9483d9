"""The template of a model family, extended by unquantised coordinate targets.

A sample is rendered by `coordexp.answers.render` and encoded by ms-swift's own template. The exact coordinates of its
answer reach the loss alongside the labels; the collator concatenates them in the order of the labels.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from PIL import Image
from swift.template import TEMPLATE_MAPPING, MaxLengthError, register_template
from swift.utils import get_logger

from coordexp.answers import render
from coordexp.answers.formats import format_of
from coordexp.datasets.samples import Sample
from coordexp.datasets.tokenize import to_tokens
from coordexp.geometry.norm1000 import legacy_targets
from coordexp.losses.set_targets import branch_targets
from coordexp.losses.targets import IGNORE
from coordexp.modeling.chat_template import answer_prefix
from coordexp.modeling.families import FAMILIES, SpecialTokens
from coordexp.modeling.vocab import coord_ids
from coordexp.records import COORD_BINS, Object, Record
from coordexp.runtime.errors import DataError, located
from coordexp.sequence_options import PrefixOptions
from coordexp.training.augmentation import augment
from coordexp.training.collate import AnswerTargets, as_targets, collate
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.dataset import TRAIN, current_epoch, epoch_progress, sample_of
from coordexp.training.prefix import read_bins, with_perturbed_prefix

TARGETS = "coord_targets"
SOURCE = "coord_source"  # of a sample that may be answered by the model, see `ms_swift.rollouts`
START = "coord_answer_start"
LONG_FIX = "raise template.max_length, lower the pixel budget, or set template.truncation_strategy: delete"

logger = get_logger()


class SampleSource(NamedTuple):
    """What a sample was encoded from.

    index, epoch: which sample it is. sample: in token space, with all annotated objects. objects: those of the answer
    as encoded. start: position of the answer's first token.
    """

    index: int
    epoch: int
    sample: Sample
    objects: list[Object]
    start: int


class EncodedSamples:
    """The samples of a batch before collation; no collection, so that nothing moves them to another device."""

    def __init__(self, samples: list[dict[str, Any]]):
        self.samples = samples


class LongSampleError(DataError):
    """A sample longer than `template.max_length`."""


def register() -> None:
    """Register `coordexp_{template}` and `coordexp_{template}_delete` for the template of every model family."""
    for family in (FAMILIES[name] for name in FAMILIES.names()):
        for suffix, cls in (("", CoordTemplate), ("_delete", SkippingTemplate)):
            meta = copy.copy(TEMPLATE_MAPPING[family.swift.template])
            meta.is_thinking, meta.thinking_prefix, meta.non_thinking_prefix = False, "", ""  # see `answer_prefix`
            meta.template_type = f"{family.swift.our_template}{suffix}"
            bases = (cls, meta.template_cls)
            meta.template_cls = type(f"{cls.__name__}Of{bases[1].__name__}", bases, {"tokens": family.tokens})
            register_template(meta, exist_ok=True)


class CoordTemplate:
    """Mixin for a template of ms-swift that encodes rows of `coordexp.training.ms_swift.dataset`.

    Any other input is passed to ms-swift unchanged.
    """

    tokens: SpecialTokens

    def init_processor(self, processor: Any) -> None:
        """Look up token ids in the tokenizer; ms-swift hard-codes the image ids of the published vocabulary."""
        super().init_processor(processor)
        if processor is not None:
            pads = [self.tokens.image_pad, self.tokens.video_pad]
            self.answer_prefix = answer_prefix(processor)
            self.image_token_id, self.video_token_id = self.tokenizer.convert_tokens_to_ids(pads)
            # Text integers can be trained on a base model without coordinate tokens: then no label is a slot.
            enabled = custom_section().coord_tokens.enabled
            ids = coord_ids(self.tokenizer) if enabled else None
            self.coord_start, self.wildcard = (ids.start, ids.wildcard) if ids else (len(self.tokenizer), None)
            format_of(custom_section().style).check_tokens(self.tokenizer.get_added_vocab())

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A row as input ids, labels, images, and the targets of its coordinate slots."""
        if not (isinstance(inputs, dict) and "index" in inputs):
            return super().encode(inputs, *args, **kwargs)
        sample, image, cropped = augmented_sample(inputs, self.tile)
        sample = arranged(sample._replace(record=as_tokens(sample.record)))
        options, rng = prefix_of(inputs)
        annotated, given = sample, 0
        if sample.record.objects and rng.random() < options.continued:
            objects, given = with_perturbed_prefix(sample.record.objects, options, rng)
            sample = sample._replace(record=msgspec.structs.replace(sample.record, objects=objects))
        encoded = self.encode_sample(sample, image, given, **kwargs)
        start = encoded.pop(START)
        if custom_section().rollout.active and inputs["split"] == TRAIN:
            facts = (inputs["index"], current_epoch(), annotated, sample.record.objects, start)
            encoded[SOURCE] = SampleSource(*facts)
        if options.noise or options.wildcard:
            self.disturb(encoded["input_ids"], read_bins(sample.record.objects, options, rng))
        encoded[TARGETS] = encoded[TARGETS]._replace(cropped=cropped)
        return encoded

    def disturb(self, input_ids: list[int], read: list[Sequence[int | None]]) -> None:
        """Replace the coordinate tokens of the answer, which are the only ones in `input_ids`, by those in `read`."""
        for n, bin in zip(self.coordinates(input_ids), itertools.chain(*read), strict=True):
            input_ids[n] = self.wildcard if bin is None else self.coord_start + bin

    @property
    def tile(self) -> int:
        """Side in pixels of the tile that becomes one image token."""
        return self.processor.image_processor.patch_size * self.processor.image_processor.merge_size

    def encode_sample(
        self, sample: Sample, image: Image.Image | None = None, given: int = 0, **kwargs: Any
    ) -> dict[str, Any]:
        """The same for a sample in token space; `image` replaces the image file of the record.

        The first `given` objects of the answer are not supervised. `START` is where the answer starts.
        """
        try:
            encoded = super().encode(as_messages(sample, image, self.answer_prefix), **kwargs)
        except MaxLengthError as error:
            problem = f"{sample.source_line}: longer than template.max_length: {error}"
            raise LongSampleError(f"{problem}\n  -> {LONG_FIX}") from error
        encoded[START] = self._unsupervise_prefix(encoded["input_ids"], encoded["labels"])
        check_image_size(encoded, sample, self.processor.image_processor.patch_size)
        supervised = [n >= given for n in range(len(sample.record.objects))]
        if given:
            self._unsupervise(encoded["labels"], sum(len(obj.coords) for obj in sample.record.objects[:given]))
        encoded[TARGETS] = self.targets(encoded["labels"], sample, supervised)
        return encoded

    def coordinates(self, tokens: list[int]) -> list[int]:
        """Positions of the coordinate tokens."""
        return [n for n, token in enumerate(tokens) if self.coord_start <= token < self.coord_start + COORD_BINS]

    def _unsupervise_prefix(self, input_ids: list[int], labels: list[int]) -> int:
        """Ignore `answer_prefix`, which is part of the prompt at inference; returns where the answer follows."""
        prefix = self._tokenize(self.answer_prefix) if self.answer_prefix else []
        start = next((n for n, label in enumerate(labels) if label != IGNORE), 0)
        if input_ids[start : start + len(prefix)] != prefix:
            facts = {"expected": prefix, "found": input_ids[start : start + len(prefix)]}
            raise DataError(located("the start of an answer is not encoded as at inference", **facts))
        labels[start : start + len(prefix)] = [IGNORE] * len(prefix)
        return start + len(prefix)

    def _unsupervise(self, labels: list[int], slots: int) -> None:
        """Ignore the answer up to its coordinate slot number `slots`, counted from 1."""
        end = self.coordinates(labels)[slots - 1] + 1
        labels[:end] = [IGNORE] * end

    def targets(self, labels: list[int], sample: Sample, supervised: Sequence[bool]) -> AnswerTargets:
        """The targets of an answer; `supervised` tells which objects of the sample have labels."""
        section, listed = custom_section(), objects_in_codec(sample.record)
        objects = [obj for obj, kept in zip(listed, supervised, strict=True) if kept]
        answer = [label for label in labels if label >= 0]
        if not section.coord_tokens.enabled:
            return AnswerTargets.from_objects(sample.source_line, [], len(answer))
        is_slot = [self.coord_start <= label < self.coord_start + COORD_BINS for label in answer]
        expected = sum(len(obj.coords) for obj in objects)
        if sum(is_slot) != expected:
            raise DataError(
                f"{sample.source_line}: expected {expected} supervised coordinate tokens, found {sum(is_slot)}\n"
                "  -> a description contains coordinate tokens, or the sample was truncated: raise template.max_length"
            )
        targets = AnswerTargets.from_objects(sample.source_line, objects, len(answer))
        if section.loss.set_targets == "none":
            return targets
        branches = branch_targets(listed, answer, is_slot, style_of(sample), self._tokenize, supervised)
        return targets._replace(branches=branches)

    def _data_collator(self, batch: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
        kept = [dict(sample) for sample in batch] if all(SOURCE in sample for sample in batch) else None
        targets = [sample.pop(TARGETS, None) for sample in batch]
        collated = super()._data_collator(batch, **kwargs)
        if all(target is not None for target in targets):
            collated[TARGETS] = collate(targets)
            if kept is not None:
                collated[TARGETS][SOURCE] = EncodedSamples(kept)
        return collated

    def compute_sft_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """Run the model, and attach the targets to its outputs for the loss."""
        targets = inputs.pop(TARGETS, None)
        outputs = super().compute_sft_loss(model, inputs, **kwargs)
        if targets is not None:
            outputs.coord_targets = as_targets(targets)
            outputs.source_lines, outputs.logged = targets["source_lines"], targets["logged"]
        return outputs


class SkippingTemplate(CoordTemplate):
    """Skips samples longer than `template.max_length`: the next sample of the epoch replaces them, and is counted."""

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The first sample from this row on that is short enough."""
        if not (isinstance(inputs, dict) and "index" in inputs):
            return super().encode(inputs, *args, **kwargs)
        count = inputs["count"]
        for offset in range(count):
            row = {**inputs, "index": (inputs["index"] + offset) % count}
            try:
                encoded = super().encode(row, *args, **kwargs)
            except LongSampleError as error:
                logger.warning_once(f"skipped: {str(error).splitlines()[0]}")
                continue
            # Counts this row only: the other long samples are counted in their own rows.
            encoded[TARGETS] = encoded[TARGETS]._replace(skipped=int(offset > 0))
            return encoded
        raise DataError(f"every sample is longer than template.max_length {self.max_length}\n  -> {LONG_FIX}")


def as_tokens(record: Record) -> Record:
    """The record in token space, quantised from `norm` if it is in pixel space."""
    return record if record.coord_space == "token" else to_tokens(record, custom_section().emit_norm)


def arranged(sample: Sample) -> Sample:
    """The sample with its objects in the order in which the answer format lists them."""
    objects = format_of(style_of(sample)).arrange(sample.record.objects)
    return sample._replace(record=msgspec.structs.replace(sample.record, objects=objects))


def objects_in_codec(record: Record) -> list[Object]:
    """Objects with `norm` replaced by their regression targets in the recipe's codec, in [0, 1]."""
    if custom_section().emit_norm == "norm1000":
        return record.objects
    size = (record.width, record.height)
    return [msgspec.structs.replace(obj, norm=legacy_targets(obj.norm, size)) for obj in record.objects]


def style_of(sample: Sample) -> render.PromptStyle:
    """The recipe's prompt style with the settings of the sample's source on top."""
    return msgspec.structs.replace(custom_section().style, **sample.style)


def augmented_sample(row: dict[str, Any], tile: int) -> tuple[Sample, Image.Image | None, int]:
    """The sample of a row, its new image if it is augmented, and the number of objects that augmentation removed."""
    sample, section = sample_of(row), custom_section()
    if row["split"] != TRAIN or not section.augmentation.active:
        return sample, None, 0
    seed = (section.sample_seed, current_epoch(), row["index"])
    return augment(sample, section.augmentation, seed, tile, section.object_ordering)


def prefix_of(row: dict[str, Any]) -> tuple[PrefixOptions, random.Random]:
    """How the prefix of a row is perturbed, and the generator that decides; only training samples are."""
    section = custom_section()
    if row["split"] != TRAIN:
        return PrefixOptions(), random.Random(0)
    return section.prefix.at(epoch_progress()), random.Random(
        f"prefix/{section.sample_seed}/{current_epoch()}/{row['index']}"
    )


def as_messages(sample: Sample, image: Image.Image | None = None, prefix: str = "") -> dict[str, Any]:
    """An ms-swift row: chat messages with the rendered answer after `prefix`, and the image or its path."""
    style = style_of(sample)
    answer = prefix + render.render_answer(sample.record.objects, style)
    messages = render.chat(style, sample.categories, answer, sample.phrase)
    return {"messages": messages, "images": [image or str(sample.path.parent / sample.record.images[0])]}


def check_image_size(encoded: dict[str, Any], sample: Sample, patch: int) -> None:
    """DataError unless the image was encoded at the size in its record; `patch` is in pixels."""
    height, width = (side * patch for side in encoded["image_grid_thw"][0].tolist()[1:])
    if (width, height) != (sample.record.width, sample.record.height):
        raise DataError(
            f"{sample.source_line}: image was encoded as {width}x{height}, "
            f"but the record has {sample.record.width}x{sample.record.height}\n"
            "  -> the image file does not match the record, or the processor resized it: convert the data again"
        )
