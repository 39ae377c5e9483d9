"""The Qwen3-VL template with unquantised targets beside the labels.

A row is rendered by `coordexp.prompt`, encoded by ms-swift's own template, and carries the exact
coordinates of its answer to the loss: the collator lays them end to end in the order in which the
labels name coordinate tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from swift.template import register_template
from swift.template.templates.qwen import Qwen3VLTemplate, QwenTemplateMeta

from coordexp import prompt
from coordexp.contract import Object, Record
from coordexp.data.samples import Sample
from coordexp.data.tokenize import to_tokens
from coordexp.errors import DataError
from coordexp.loss.objective import Targets
from coordexp.model.vocab import coord_ids
from coordexp.swift.dataset import sample_of
from coordexp.swift.settings import custom_section

NAME = "coordexp"
COORDS, BOXES = "coord_targets", "coord_boxes"


def register() -> None:
    """Make `--template coordexp` known to ms-swift."""
    meta = QwenTemplateMeta(NAME, template_cls=CoordTemplate, default_system=None, thinking_prefix="<think>\n")
    register_template(meta, exist_ok=True)


class CoordTemplate(Qwen3VLTemplate):
    """Encodes rows of `coordexp.swift.dataset`; any other input goes through ms-swift unchanged."""

    def init_processor(self, processor: Any) -> None:
        """Take the picture tokens' ids from the tokenizer; ms-swift's own are those of the published vocabulary."""
        super().init_processor(processor)
        if processor is not None:
            pads = ["<|image_pad|>", "<|video_pad|>"]
            self.image_token_id, self.video_token_id = self.tokenizer.convert_tokens_to_ids(pads)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A row as input ids, labels, pictures, and the targets of its coordinate slots."""
        if not (isinstance(inputs, dict) and "index" in inputs):
            return super().encode(inputs, *args, **kwargs)
        sample = sample_of(inputs)
        record = as_tokens(sample.record)
        encoded = super().encode(as_messages(sample._replace(record=record)), *args, **kwargs)
        encoded[COORDS], encoded[BOXES] = answer_targets(record.objects)
        self._check(encoded, record, sample.place)
        return encoded

    def _data_collator(self, batch: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
        coords = [sample.pop(COORDS, []) for sample in batch]
        boxes = [sample.pop(BOXES, []) for sample in batch]
        collated = super()._data_collator(batch, **kwargs)
        collated[COORDS], collated[BOXES] = lay_end_to_end(coords, boxes)
        return collated

    def compute_sft_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """Run the model; the targets travel to the loss on its outputs."""
        targets = Targets(inputs.pop(COORDS), inputs.pop(BOXES))
        outputs = super().compute_sft_loss(model, inputs, **kwargs)
        outputs.coord_targets = targets
        return outputs

    def _check(self, encoded: dict[str, Any], record: Record, where: str) -> None:
        """Refuse a sample whose picture or coordinate labels are not what the record says."""
        ids = coord_ids(self.tokenizer) if custom_section().coord_tokens.enabled else None
        slots = sum(ids.start <= label <= ids.end for label in encoded["labels"]) if ids else 0
        if ids and slots != len(encoded[COORDS]):
            raise DataError(
                f"{where}: {len(encoded[COORDS])} coordinates, but {slots} supervised coordinate tokens\n"
                "  -> a text in this record holds coordinate tokens, or the sample was cut: raise template.max_length"
            )
        grid = encoded["image_grid_thw"][0].tolist()
        patch = self.processor.image_processor.patch_size
        if grid[1:] != [record.height // patch, record.width // patch]:
            encoded_as = f"{grid[2] * patch}x{grid[1] * patch}"
            raise DataError(
                f"{where}: picture encoded as {encoded_as}, but the record says {record.width}x{record.height}\n"
                "  -> the picture file and the record disagree, or the processor resized it: convert again"
            )


def as_tokens(record: Record) -> Record:
    """The record in token space: as it is, or quantised from `norm` when the recipe reads pixel files."""
    return record if record.coord_space == "token" else to_tokens(record, custom_section().emit_norm)


def as_messages(sample: Sample) -> dict[str, Any]:
    """ms-swift's row: chat messages with the rendered answer, and the picture's path."""
    style = msgspec.structs.replace(custom_section().style, **sample.style)
    answer = prompt.render_answer(sample.record.objects, style)
    messages = prompt.chat(style, sample.categories, answer)
    return {"messages": messages, "images": [str(sample.path.parent / sample.record.images[0])]}


def answer_targets(objects: list[Object]) -> tuple[list[float], list[list[int]]]:
    """Unquantised coordinates in [0, 1] in the order of the answer's slots, and the slots of each box."""
    if not custom_section().coord_tokens.enabled:
        return [], []
    coords: list[float] = []
    boxes: list[list[int]] = []
    for obj in objects:
        if obj.bbox_2d is not None:
            boxes.append(list(range(len(coords), len(coords) + 4)))
        coords += obj.norm
    return coords, boxes


def lay_end_to_end(coords: list[list[float]], boxes: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of a batch: [S] float32, and [N, 4] int64 with the slots counted through the batch."""
    flat: list[float] = []
    shifted: list[list[int]] = []
    for sample_coords, sample_boxes in zip(coords, boxes, strict=True):
        shifted += [[slot + len(flat) for slot in box] for box in sample_boxes]
        flat += sample_coords
    return torch.tensor(flat, dtype=torch.float32), torch.tensor(shifted, dtype=torch.int64).reshape(-1, 4)
