"""The Qwen3-VL template with unquantised targets beside the labels.

A sample is rendered by `coordexp.prompt`, encoded by ms-swift's own template, and carries the exact
coordinates of its answer to the loss; the collator lays them end to end in the order of the labels.
"""

from __future__ import annotations

from typing import Any

import msgspec
from swift.template import register_template
from swift.template.templates.qwen import Qwen3VLTemplate, QwenTemplateMeta

from coordexp import prompt
from coordexp.contract import COORD_BINS, Record
from coordexp.data.samples import Sample
from coordexp.data.tokenize import to_tokens
from coordexp.errors import DataError
from coordexp.loss.targets import IGNORE
from coordexp.model.vocab import coord_ids
from coordexp.swift.branches import branches
from coordexp.swift.dataset import sample_of
from coordexp.swift.settings import custom_section
from coordexp.swift.targets import AnswerTargets, as_targets, lay_end_to_end

NAME = "coordexp"
TARGETS = "coord_targets"


def register() -> None:
    """Make `--template coordexp` known to ms-swift."""
    meta = QwenTemplateMeta(NAME, template_cls=CoordTemplate, default_system=None, thinking_prefix="<think>\n")
    register_template(meta, exist_ok=True)


class CoordTemplate(Qwen3VLTemplate):
    """Encodes rows of `coordexp.swift.dataset`; any other input goes through ms-swift unchanged."""

    def init_processor(self, processor: Any) -> None:
        """Take ids from the tokenizer, once; ms-swift's own for pictures are those of the published vocabulary."""
        super().init_processor(processor)
        if processor is not None:
            pads = ["<|image_pad|>", "<|video_pad|>"]
            self.image_token_id, self.video_token_id = self.tokenizer.convert_tokens_to_ids(pads)
            # a base without the tokens can be taught in text integers: then no label is a coordinate slot
            enabled = custom_section().coord_tokens.enabled
            self.coord_start = coord_ids(self.tokenizer).start if enabled else len(self.tokenizer)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A row as input ids, labels, pictures, and the targets of its coordinate slots."""
        if not (isinstance(inputs, dict) and "index" in inputs):
            return super().encode(inputs, *args, **kwargs)
        sample = sample_of(inputs)
        return self.encode_sample(sample._replace(record=as_tokens(sample.record)), *args, **kwargs)

    def encode_sample(self, sample: Sample, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The same for a sample in token space."""
        encoded = super().encode(as_messages(sample), *args, **kwargs)
        check_picture(encoded, sample, self.processor.image_processor.patch_size)
        encoded[TARGETS] = self._targets(encoded["labels"], sample)
        return encoded

    def _targets(self, labels: list[int], sample: Sample) -> AnswerTargets:
        section, objects = custom_section(), sample.record.objects
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
            collated[TARGETS] = lay_end_to_end(targets)
        return collated

    def compute_sft_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """Run the model; the targets travel to the loss on its outputs."""
        targets = inputs.pop(TARGETS, None)
        outputs = super().compute_sft_loss(model, inputs, **kwargs)
        if targets is not None:
            outputs.coord_targets, outputs.places = as_targets(targets), targets["places"]
        return outputs


def as_tokens(record: Record) -> Record:
    """The record in token space: as it is, or quantised from `norm` when the recipe reads pixel files."""
    return record if record.coord_space == "token" else to_tokens(record, custom_section().emit_norm)


def style_of(sample: Sample) -> prompt.PromptStyle:
    """The recipe's style under what the sample's source sets for itself."""
    return msgspec.structs.replace(custom_section().style, **sample.style)


def as_messages(sample: Sample) -> dict[str, Any]:
    """ms-swift's row: chat messages with the rendered answer, and the picture's path."""
    style = style_of(sample)
    messages = prompt.chat(style, sample.categories, prompt.render_answer(sample.record.objects, style))
    return {"messages": messages, "images": [str(sample.path.parent / sample.record.images[0])]}


def check_picture(encoded: dict[str, Any], sample: Sample, patch: int) -> None:
    """DataError when the picture was not encoded at the size that its record says (pixels)."""
    height, width = (side * patch for side in encoded["image_grid_thw"][0].tolist()[1:])
    if (width, height) != (sample.record.width, sample.record.height):
        raise DataError(
            f"{sample.place}: picture encoded as {width}x{height}, "
            f"but the record says {sample.record.width}x{sample.record.height}\n"
            "  -> the picture file and the record disagree, or the processor resized it: convert again"
        )
