"""The whole objective over a batch: every term is a sum over its own slots divided by a global count.

The counts are those of the *global* batch (all accumulation steps, all processes), so neither
gradient accumulation nor the number of processes changes the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from coordexp.contract import COORD_BINS
from coordexp.loss import boxes as box_terms
from coordexp.loss import slots as slot_terms
from coordexp.loss.logits import Split, split_logits
from coordexp.recipe import Loss

IGNORE = -100
GEOMETRY = ("l1", "giou", "ciou")


class Counts(NamedTuple):
    """How many text positions, coordinate slots and boxes the global batch supervises."""

    text: int
    slots: int
    boxes: int


class Targets(NamedTuple):
    """Unquantised targets in reading order of the batch.

    coords: [S] float32 in [0, 1], one a coordinate slot, rows of the batch one after the other.
    boxes: [N, 4] int64, the four slots (indices into `coords`) of each box; polygons have none.
    """

    coords: torch.Tensor
    boxes: torch.Tensor


def count(labels: torch.Tensor, targets: Targets, coord_start: int) -> Counts:
    """Counts of one micro-batch; `labels` [B, L] int64 as the collator gives them, not shifted."""
    shifted = labels[:, 1:]
    supervised = int((shifted != IGNORE).sum())
    slots = int(_is_coord(shifted, coord_start).sum())
    return Counts(text=supervised - slots, slots=slots, boxes=targets.boxes.shape[0])


def objective(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: Targets,
    weights: Loss,
    coord_start: int,
    counts: Counts | None = None,
    progress: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and, detached, the mean of each term and diagnostic over this micro-batch.

    logits: [B, L, V]; labels: [B, L] int64, -100 where nothing is supervised; position i predicts label
    i + 1. `progress` in [0, 1] is the fraction of training done, for the ramp of the geometry terms.
    """
    counts = counts or count(labels, targets, coord_start)
    rows, wanted = _supervised(labels)
    is_slot = _is_coord(wanted, coord_start)
    if int(is_slot.sum()) != targets.coords.numel():
        raise ValueError(f"{int(is_slot.sum())} coordinate labels, but {targets.coords.numel()} targets in the batch")
    split = split_logits(logits.reshape(-1, logits.shape[-1]), rows, wanted, is_slot, coord_start)

    sums, sizes = {"text": (split.lse - split.picked)[~is_slot].sum()}, {"text": counts.text}
    for name, value in _slot_values(split, wanted, is_slot, targets.coords, weights, coord_start).items():
        sums[name], sizes[name] = value.sum(), counts.slots
    expected = slot_terms.expectation(split.coord, weights.temperature)
    for name, value in _box_values(expected, targets, weights).items():
        sums[name], sizes[name] = value.sum(), counts.boxes

    rise = ramp(weights, progress)
    scale = {name: getattr(weights, name) * (rise if name in GEOMETRY else 1.0) for name in sums}
    loss = sum(
        (scale[name] * total / max(sizes[name], 1) for name, total in sums.items() if scale[name]), logits.new_zeros(())
    )
    local = {"text": int((~is_slot).sum()), **dict.fromkeys(GEOMETRY, targets.boxes.shape[0])}
    metrics = {name: total.detach() / max(local.get(name, targets.coords.numel()), 1) for name, total in sums.items()}
    return loss, metrics | diagnostics(split, expected, wanted[is_slot] - coord_start, targets.coords, is_slot)


def ramp(weights: Loss, progress: float) -> float:
    """Factor of the geometry terms at `progress`: 0 before `ramp.start`, 1 from `ramp.end` on."""
    start, end = weights.ramp.start, weights.ramp.end
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0


@torch.no_grad()
def diagnostics(
    split: Split, expected: torch.Tensor, bins: torch.Tensor, coords: torch.Tensor, is_slot: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Coordinate accuracy, mass on coordinate ids, and the error of the expectation in bins (median, p90)."""
    if not bins.numel():
        return {}
    error = (expected - coords).abs() * slot_terms.LAST_BIN
    return {
        "coord_accuracy": (split.coord.argmax(dim=-1) == bins).float().mean(),
        "coord_mass": torch.exp(-slot_terms.gate(split.lse[is_slot], split.coord)).mean(),
        "bin_error_median": error.median(),
        "bin_error_p90": error.quantile(0.9),
    }


def _supervised(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat rows of the logits [N] that predict something, and the labels [N] that they predict."""
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:]
    rows = (shifted.reshape(-1) != IGNORE).nonzero().squeeze(-1)
    return rows, shifted.reshape(-1)[rows]


def _is_coord(labels: torch.Tensor, coord_start: int) -> torch.Tensor:
    return (labels >= coord_start) & (labels < coord_start + COORD_BINS)


def _slot_values(
    split: Split,
    wanted: torch.Tensor,
    is_slot: torch.Tensor,
    coords: torch.Tensor,
    weights: Loss,
    coord_start: int,
) -> dict[str, torch.Tensor]:
    values = {}
    shape = (weights.sigma, weights.truncate, weights.temperature)
    if weights.ce:
        values["ce"] = slot_terms.hard_ce(split.coord, wanted[is_slot] - coord_start, weights.temperature)
    if weights.soft_ce:
        values["soft_ce"] = slot_terms.soft_ce(split.coord, coords, *shape)
    if weights.w1:
        values["w1"] = slot_terms.wasserstein1(split.coord, coords, *shape)
    if weights.gate:
        values["gate"] = slot_terms.gate(split.lse[is_slot], split.coord)
    return values


def _box_values(expected: torch.Tensor, targets: Targets, weights: Loss) -> dict[str, torch.Tensor]:
    predicted, wanted = expected[targets.boxes], targets.coords[targets.boxes]
    values = {}
    if weights.l1:
        values["l1"] = box_terms.l1(predicted, wanted)
    if weights.giou:
        values["giou"] = box_terms.giou_loss(predicted, wanted)
    if weights.ciou:
        values["ciou"] = box_terms.ciou_loss(predicted, wanted)
    return values
