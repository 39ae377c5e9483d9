"""Targets of a batch: unquantised coordinates, the boxes among them, and soft targets where the order is open.

Positions count supervised labels, and slots count coordinate labels, in reading order of the batch: row after row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from coordexp.records import COORD_BINS

IGNORE = -100
REJECTED = -1000  # a label REJECTED - i is the token i that must not follow; see `rejected_label`


class SlotTargets(NamedTuple):
    """F targets of coordinate slots. A slot has several where any of several objects may come next.

    slot: [F] int64 index of the slot. bins: [F] int64 target bin. coords: [F] float32 unrounded target in [0, 1].
    weight: [F] float32; the weights of a slot sum to 1.
    """

    slot: torch.Tensor
    bins: torch.Tensor
    coords: torch.Tensor
    weight: torch.Tensor


class SoftTargets(NamedTuple):
    """Targets at branch positions, where any of several objects may come next; weights sum to 1 per position.

    text_position: [E] int64 index among the supervised labels. text_id: [E] int64 token. text_weight: [E] float32.
    slots: targets of the coordinate slots that have several; all other slots keep their single target.
    """

    text_position: torch.Tensor
    text_id: torch.Tensor
    text_weight: torch.Tensor
    slots: SlotTargets


class Targets(NamedTuple):
    """Targets of a batch with S coordinate slots and N boxes (polygons have slots but no box).

    coords: [S] float32 in [0, 1]. boxes: [N, 4] int64, the slots of each box. images, classes: [N] int64, the image
    and the description of each box. soft: set targets, if any.
    """

    coords: torch.Tensor
    boxes: torch.Tensor
    images: torch.Tensor
    classes: torch.Tensor
    soft: SoftTargets | None = None


class SupervisedLabels(NamedTuple):
    """N supervised labels of a batch, S of them coordinate slots, and R rejected tokens.

    rows: [N] int64 row of the flattened logits that predicts each label. ids: [N] int64 labels. slots: [S] int64
    increasing indices into the N. rejected_rows, rejected_ids: [R] int64, other rows, and the token rejected at each.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    slots: torch.Tensor
    rejected_rows: torch.Tensor
    rejected_ids: torch.Tensor

    @property
    def text(self) -> torch.Tensor:
        """Increasing indices of the labels that are not coordinate slots, [N - S]."""
        keep = torch.ones_like(self.ids, dtype=torch.bool)
        keep[self.slots] = False
        return keep.nonzero().squeeze(-1)


def rejected_label(token: int) -> int:
    """The label of a position at which `token` must not follow, whatever else does."""
    return REJECTED - token


def supervised_labels(labels: torch.Tensor, coord_start: int) -> SupervisedLabels:
    """Supervised and rejected entries of `labels` [B, L] int64, see `REJECTED`; position i predicts label i + 1."""
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:]
    flat = shifted.reshape(-1)
    rows = (flat >= 0).nonzero().squeeze(-1)
    rejected = (flat <= REJECTED).nonzero().squeeze(-1)
    ids = flat[rows]
    slots = is_coordinate(ids, coord_start).nonzero().squeeze(-1)
    return SupervisedLabels(rows, ids, slots, rejected, REJECTED - flat[rejected])


def is_coordinate(ids: torch.Tensor, coord_start: int) -> torch.Tensor:
    """Mask of the ids that are coordinate tokens."""
    return (ids >= coord_start) & (ids < coord_start + COORD_BINS)


def text_targets(labels: SupervisedLabels, soft: SoftTargets | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(positions [P] increasing, ids [P], weights [P]) at all text positions: the label, or its soft targets."""
    positions, ids = labels.text, labels.ids
    if soft is None or not soft.text_position.numel():
        return positions, ids[positions], torch.ones_like(positions, dtype=torch.float32)
    hard = positions[~torch.isin(positions, soft.text_position)]
    merged = torch.cat([hard, soft.text_position])
    order = merged.argsort(stable=True)
    merged_ids = torch.cat([ids[hard], soft.text_id])
    weights = torch.cat([torch.ones_like(hard, dtype=torch.float32), soft.text_weight])
    return merged[order], merged_ids[order], weights[order]


def slot_targets(bins: torch.Tensor, coords: torch.Tensor, soft: SoftTargets | None) -> SlotTargets:
    """Targets of all slots: the slot's own bin [S] and coordinate [S], or its soft targets."""
    slots = torch.arange(bins.numel(), device=bins.device)
    if soft is None or not soft.slots.slot.numel():
        return SlotTargets(slots, bins, coords, torch.ones_like(coords))
    hard = slots[~torch.isin(slots, soft.slots.slot)]
    single = SlotTargets(hard, bins[hard], coords[hard], torch.ones_like(coords[hard]))
    return SlotTargets(*(torch.cat(pair) for pair in zip(single, soft.slots, strict=True)))
