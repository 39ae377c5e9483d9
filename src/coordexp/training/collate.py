"""Loss targets from the template to the criterion: of one answer as plain lists, of a batch as a map of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from coordexp.losses.set_targets import BranchTargets
from coordexp.losses.targets import SlotTargets, SoftTargets, Targets
from coordexp.records import Object


class AnswerTargets(NamedTuple):
    """Targets of one answer.

    source_line: its record as file:line. coords: coordinates in [0, 1], in slot order. boxes: the four slots of each
    box. descs: description of each box. supervised: number of supervised labels. branches: set targets, if any.
    skipped: 1 if it replaces a sample that was too long. cropped: number of objects removed by augmentation.
    """

    source_line: str
    coords: list[float]
    boxes: list[list[int]]
    descs: list[str]
    supervised: int
    branches: BranchTargets | None = None
    skipped: int = 0
    cropped: int = 0

    @classmethod
    def from_objects(cls, source_line: str, objects: Sequence[Object], supervised: int) -> AnswerTargets:
        """Hard targets of an answer that lists `objects` in this order."""
        coords: list[float] = []
        boxes, descs = [], []
        for obj in objects:
            if obj.bbox_2d is not None:
                boxes.append(list(range(len(coords), len(coords) + 4)))
                descs.append(obj.desc)
            coords += obj.norm
        return cls(source_line, coords, boxes, descs, supervised)


def collate(answers: Sequence[AnswerTargets]) -> dict[str, Any]:
    """Targets of a batch, with slots and supervised labels numbered across the batch.

    `source_lines`: records of the batch. `counts`: [3] int64, text labels, coordinate slots and boxes. `logged`: counts
    that are only logged. The other entries are the tensors of `Targets`, see `as_targets`.
    """
    coords: list[float] = []
    boxes, images, classes, text, slots = [], [], [], [], []
    class_ids: dict[str, int] = {}
    position = 0  # supervised labels of the answers so far
    for image, answer in enumerate(answers):
        boxes += [[slot + len(coords) for slot in box] for box in answer.boxes]
        images += [image] * len(answer.boxes)
        classes += [class_ids.setdefault(desc, len(class_ids)) for desc in answer.descs]
        if answer.branches is not None:
            text += [(position + at, token, weight) for at, token, weight in answer.branches.text]
            slots += [(len(coords) + slot, *rest) for slot, *rest in answer.branches.slots]
        coords += answer.coords
        position += answer.supervised
    batch: dict[str, Any] = {
        "source_lines": [answer.source_line for answer in answers],
        "logged": {
            "samples_skipped": sum(answer.skipped for answer in answers),
            "objects_cropped": sum(answer.cropped for answer in answers),
        },
        "counts": torch.tensor([position - len(coords), len(coords), len(boxes)]),
        "coords": torch.tensor(coords, dtype=torch.float32),
        "boxes": torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
        "images": torch.tensor(images, dtype=torch.int64),
        "classes": torch.tensor(classes, dtype=torch.int64),
    }
    if any(answer.branches is not None for answer in answers):
        batch |= _columns("text", text, (("position", torch.int64), ("id", torch.int64), ("weight", torch.float32)))
        dtypes = (("slot", torch.int64), ("bins", torch.int64), ("coords", torch.float32), ("weight", torch.float32))
        batch |= _columns("slot", slots, dtypes)
    return batch


def as_targets(batch: dict[str, Any]) -> Targets:
    """The criterion's targets from a collated batch."""
    soft = None
    if "text_position" in batch:
        slots = SlotTargets(*(batch[f"slot_{name}"] for name in SlotTargets._fields))
        soft = SoftTargets(batch["text_position"], batch["text_id"], batch["text_weight"], slots)
    return Targets(batch["coords"], batch["boxes"], batch["images"], batch["classes"], soft)


def _columns(prefix: str, rows: list[tuple], dtypes: tuple) -> dict[str, torch.Tensor]:
    columns = list(zip(*rows, strict=True)) or [()] * len(dtypes)
    pairs = zip(dtypes, columns, strict=True)
    return {f"{prefix}_{name}": torch.tensor(column, dtype=dtype) for (name, dtype), column in pairs}
