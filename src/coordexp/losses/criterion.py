"""The whole objective over a batch: every term is a sum over its own slots divided by a global count.

The counts are those of the *global* batch (all accumulation steps, all processes), so neither
gradient accumulation nor the number of processes changes the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from coordexp.losses import box_terms
from coordexp.losses import coordinate_terms as slot_terms
from coordexp.losses.chunked_logits import split_logits
from coordexp.losses.matching import match
from coordexp.losses.options import LossOptions
from coordexp.losses.targets import Targets, slot_targets, supervised, text_targets

GEOMETRY = ("l1", "giou", "ciou")


class Counts(NamedTuple):
    """How many text positions, coordinate slots and boxes the global batch supervises."""

    text: int
    slots: int
    boxes: int


class Measured(NamedTuple):
    """What a micro-batch is reported by, detached, in a form that adds up over micro-batches and processes.

    means: (sum, count) of each term and diagnostic. bin_errors: [S] distance of the expectation from the
    unrounded coordinate, in bins.
    """

    means: dict[str, tuple[torch.Tensor, int]]
    bin_errors: torch.Tensor


def objective(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: Targets,
    weights: LossOptions,
    coord_start: int,
    counts: Counts | None = None,
    progress: float = 1.0,
) -> tuple[torch.Tensor, Measured]:
    """Loss of this micro-batch, and what it is reported by.

    logits: [B, L, V]; labels: [B, L] int64, -100 where nothing is supervised; position i predicts label
    i + 1. `progress` in [0, 1] is the fraction of training done, for the geometry_warmup of the geometry terms.
    """
    found = supervised(labels, coord_start)
    if found.slots.numel() != targets.coords.numel():
        raise ValueError(f"{found.slots.numel()} coordinate labels, but {targets.coords.numel()} targets in the batch")
    local = Counts(found.ids.numel() - found.slots.numel(), found.slots.numel(), targets.boxes.shape[0])
    places, ids, share = text_targets(found, targets.spread)
    split = split_logits(logits.reshape(-1, logits.shape[-1]), found.rows, (places, ids), found.slots, coord_start)
    log_p = slot_terms.log_probabilities(split.coord, weights.temperature)
    p = log_p.exp()
    expected = slot_terms.expectation(p)
    coord_mass = slot_terms.gate(split.lse[found.slots], split.coord)
    bins = found.ids[found.slots] - coord_start

    sums = {
        "text": split.lse[found.text].sum() - (share * split.picked).sum(),
        **_slot_sums(log_p, p, coord_mass, bins, targets, weights),
        **_box_sums(expected, targets, weights),
    }
    scale = {
        name: getattr(weights, name) * (geometry_warmup(weights, progress) if name in GEOMETRY else 1.0)
        for name in sums
    }
    sizes, mine = _sizes(sums, counts or local), _sizes(sums, local)
    parts = (scale[name] * total / max(sizes[name], 1) for name, total in sums.items() if scale[name])
    loss = sum(parts, logits.new_zeros(()))
    means = {name: (total.detach(), mine[name]) for name, total in sums.items()}
    errors = (expected.detach() - targets.coords).abs() * slot_terms.LAST_BIN
    return loss, Measured(means | diagnostics(log_p, coord_mass, bins), errors)


def geometry_warmup(weights: LossOptions, progress: float) -> float:
    """Factor of the geometry terms at `progress`: 0 before `geometry_warmup.start`, 1 from `geometry_warmup.end` on."""
    start, end = weights.geometry_warmup.start, weights.geometry_warmup.end
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0


@torch.no_grad()
def diagnostics(
    log_p: torch.Tensor, coord_mass: torch.Tensor, bins: torch.Tensor
) -> dict[str, tuple[torch.Tensor, int]]:
    """Sum and count of coordinate accuracy and of the mass on coordinate ids."""
    right = (log_p.argmax(dim=-1) == bins).sum()
    return {
        "coord_accuracy": (right, bins.numel()),
        "mass_on_coordinates": (torch.exp(-coord_mass).sum(), bins.numel()),
    }


def _sizes(sums: dict[str, torch.Tensor], counts: Counts) -> dict[str, int]:
    own = {"text": counts.text, **dict.fromkeys(GEOMETRY, counts.boxes)}
    return {name: own.get(name, counts.slots) for name in sums}


def _slot_sums(
    log_p: torch.Tensor,
    p: torch.Tensor,
    coord_mass: torch.Tensor,
    bins: torch.Tensor,
    targets: Targets,
    weights: LossOptions,
) -> dict[str, torch.Tensor]:
    wanted = slot_targets(bins, targets.coords, targets.spread)
    terms = {
        "ce": lambda: slot_terms.hard_ce(log_p, wanted),
        "soft_ce": lambda: slot_terms.soft_ce(log_p, wanted, weights.sigma, weights.truncate),
        "w1": lambda: slot_terms.wasserstein1(p, wanted, weights.sigma, weights.truncate),
        "coord_mass": lambda: coord_mass,
    }
    return {name: term().sum() for name, term in terms.items() if getattr(weights, name)}


def _box_sums(expected: torch.Tensor, targets: Targets, weights: LossOptions) -> dict[str, torch.Tensor]:
    """Geometry of the expected boxes against the boxes that they are matched to."""
    terms = {"l1": box_terms.l1, "giou": box_terms.giou_loss, "ciou": box_terms.ciou_loss}
    active = [name for name in terms if getattr(weights, name)]
    if not active:
        return {}
    predicted, wanted = _teacher_forced(expected, targets)[targets.boxes], targets.coords[targets.boxes]
    pairs = match(predicted, wanted, targets.images, targets.classes, weights.matching, class_cost=weights.class_cost)
    chosen = (predicted[pairs.predicted], wanted[pairs.target])
    return {name: (pairs.weight * terms[name](*chosen)).sum() for name in active}


def _teacher_forced(expected: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Coordinates [S] that boxes are made of: expectations, but the truth at a slot that may open several objects.

    The mean over several objects lies between them; the slots after it know from the prefix which one it was.
    """
    if targets.spread is None:
        return expected
    several = torch.zeros_like(expected, dtype=torch.bool)
    several[targets.spread.slots.slot] = True
    return torch.where(several, targets.coords, expected)
