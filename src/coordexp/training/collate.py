"""Targets on their way: of one answer as plain lists, of a batch as tensors in one map, for the loss as `Targets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from coordexp.losses.coordinate_terms import SlotTargets
from coordexp.losses.set_targets import Branches
from coordexp.losses.targets import SoftTargets, Targets
from coordexp.records import Object


class AnswerTargets(NamedTuple):
    """Of one answer: its record as file:line, coordinates in [0, 1] in slot order, the slots of each box and its
    description, how many labels are supervised, and the branch positions (None when every target is hard).

    left_out: 1 when it stands in for a sample that was too long. cropped: objects that augmentation cut away.
    """

    place: str
    coords: list[float]
    boxes: list[list[int]]
    descs: list[str]
    supervised: int
    branches: Branches | None = None
    left_out: int = 0
    cropped: int = 0

    @classmethod
    def of(cls, place: str, objects: Sequence[Object], supervised: int) -> AnswerTargets:
        """Hard targets of an answer that names `objects` in this order."""
        coords: list[float] = []
        boxes, descs = [], []
        for obj in objects:
            if obj.bbox_2d is not None:
                boxes.append(list(range(len(coords), len(coords) + 4)))
                descs.append(obj.desc)
            coords += obj.norm
        return cls(place, coords, boxes, descs, supervised)


def collate(answers: Sequence[AnswerTargets]) -> dict[str, Any]:
    """Tensors of a batch, slots and supervised labels counted through all of it.

    `places` are its records, `counts` [3] int64 its text labels, coordinate slots and boxes, `tally` what is
    only logged.
    """
    coords: list[float] = []
    boxes, images, classes, text, slots = [], [], [], [], []
    names: dict[str, int] = {}
    place = 0
    for number, answer in enumerate(answers):
        boxes += [[slot + len(coords) for slot in box] for box in answer.boxes]
        images += [number] * len(answer.boxes)
        classes += [names.setdefault(desc, len(names)) for desc in answer.descs]
        if answer.branches is not None:
            text += [(place + at, token, weight) for at, token, weight in answer.branches.text]
            slots += [(len(coords) + slot, *rest) for slot, *rest in answer.branches.slots]
        coords += answer.coords
        place += answer.supervised
    batch: dict[str, Any] = {
        "places": [answer.place for answer in answers],
        "tally": {
            "samples_left_out": sum(answer.left_out for answer in answers),
            "objects_cropped": sum(answer.cropped for answer in answers),
        },
        "counts": torch.tensor([place - len(coords), len(coords), len(boxes)]),
        "coords": torch.tensor(coords, dtype=torch.float32),
        "boxes": torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
        "images": torch.tensor(images, dtype=torch.int64),
        "classes": torch.tensor(classes, dtype=torch.int64),
    }
    if any(answer.branches is not None for answer in answers):
        batch |= _columns("text", text, (("place", torch.int64), ("id", torch.int64), ("weight", torch.float32)))
        kinds = (("slot", torch.int64), ("bins", torch.int64), ("coords", torch.float32), ("weight", torch.float32))
        batch |= _columns("slot", slots, kinds)
    return batch


def as_targets(batch: dict[str, Any]) -> Targets:
    """What the loss reads, from the collated tensors."""
    spread = None
    if "text_place" in batch:
        wanted = SlotTargets(*(batch[f"slot_{name}"] for name in SlotTargets._fields))
        spread = SoftTargets(batch["text_place"], batch["text_id"], batch["text_weight"], wanted)
    return Targets(batch["coords"], batch["boxes"], batch["images"], batch["classes"], spread)


def _columns(prefix: str, rows: list[tuple], kinds: tuple) -> dict[str, torch.Tensor]:
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    pairs = zip(kinds, columns, strict=True)
    return {f"{prefix}_{name}": torch.tensor(column, dtype=dtype) for (name, dtype), column in pairs}
