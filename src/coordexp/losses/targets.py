"""What a batch is held to: unquantised coordinates, the boxes among them, and sets where order is open.

Places count supervised labels, or coordinate slots, in reading order of the batch: row after row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from coordexp.losses.coordinate_terms import SlotTargets
from coordexp.records import COORD_BINS

IGNORE = -100


class SoftTargets(NamedTuple):
    """Targets at branch positions, where several objects may come next; each position's weights sum to 1.

    text_place [E] int64 (among the supervised labels), text_id [E] int64, text_weight [E] float32: tokens.
    slots: coordinate targets of slots with several; slots that it does not name keep their one target.
    """

    text_place: torch.Tensor
    text_id: torch.Tensor
    text_weight: torch.Tensor
    slots: SlotTargets


class Targets(NamedTuple):
    """coords: [S] float32 in [0, 1], one a coordinate slot. boxes: [N, 4] int64, the slots of each box (polygons
    have none). images, classes: [N] int64, the image and the description of each box. spread: see there.
    """

    coords: torch.Tensor
    boxes: torch.Tensor
    images: torch.Tensor
    classes: torch.Tensor
    spread: SoftTargets | None = None


class Labels(NamedTuple):
    """Supervised positions of a batch: flat rows of the logits [N], the labels [N] that they predict, and which
    of the N are coordinate slots [S] (increasing)."""

    rows: torch.Tensor
    ids: torch.Tensor
    slots: torch.Tensor

    @property
    def text(self) -> torch.Tensor:
        """Places that are no coordinate slots, increasing."""
        keep = torch.ones_like(self.ids, dtype=torch.bool)
        keep[self.slots] = False
        return keep.nonzero().squeeze(-1)


def supervised(labels: torch.Tensor, coord_start: int) -> Labels:
    """Positions of `labels` [B, L] int64, -100 where nothing is supervised; position i predicts label i + 1."""
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:]
    flat = shifted.reshape(-1)
    rows = (flat != IGNORE).nonzero().squeeze(-1)
    ids = flat[rows]
    return Labels(rows, ids, is_coord(ids, coord_start).nonzero().squeeze(-1))


def is_coord(ids: torch.Tensor, coord_start: int) -> torch.Tensor:
    """Which ids are coordinate tokens."""
    return (ids >= coord_start) & (ids < coord_start + COORD_BINS)


def text_targets(labels: Labels, spread: SoftTargets | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(places [P] increasing, ids [P], weights [P]) of every text position: its label, or its spread."""
    places, ids = labels.text, labels.ids
    if spread is None or not spread.text_place.numel():
        return places, ids[places], torch.ones_like(places, dtype=torch.float32)
    hard = places[~torch.isin(places, spread.text_place)]
    every = torch.cat([hard, spread.text_place])
    order = every.argsort(stable=True)
    named = torch.cat([ids[hard], spread.text_id])
    weight = torch.cat([torch.ones_like(hard, dtype=torch.float32), spread.text_weight])
    return every[order], named[order], weight[order]


def slot_targets(bins: torch.Tensor, coords: torch.Tensor, spread: SoftTargets | None) -> SlotTargets:
    """Targets of every slot: its own bin [S] and coordinate [S], or its spread."""
    slots = torch.arange(bins.numel(), device=bins.device)
    if spread is None or not spread.slots.slot.numel():
        return SlotTargets(slots, bins, coords, torch.ones_like(coords))
    hard = slots[~torch.isin(slots, spread.slots.slot)]
    own = SlotTargets(hard, bins[hard], coords[hard], torch.ones_like(coords[hard]))
    return SlotTargets(*(torch.cat(pair) for pair in zip(own, spread.slots, strict=True)))
