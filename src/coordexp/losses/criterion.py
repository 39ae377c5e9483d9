"""The training loss: the weighted sum of all terms, each divided by the global number of its own positions.

    loss = sum_terms  weight * warmup * sum(term over its positions) / (positions of that level in the global batch)

The global batch is all gradient-accumulation steps on all processes, so neither accumulation nor the number of
processes changes the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from coordexp.losses.chunked_logits import GatheredLogits, gather_logits
from coordexp.losses.coordinate_distribution import LAST_BIN, expectation, gaussian_targets, log_probabilities
from coordexp.losses.matching import match
from coordexp.losses.options import LossOptions
from coordexp.losses.targets import SupervisedLabels, Targets, slot_targets, supervised_labels, text_targets
from coordexp.losses.terms import LOSS_TERMS, CoordinateSlots, LossTerm, TextLogits


class Counts(NamedTuple):
    """Numbers of supervised text tokens, coordinate slots and boxes in a batch: what sums are divided by."""

    text: int
    coordinate: int
    box: int


class LossReport(NamedTuple):
    """Detached values to log, in a form that adds up over micro-batches and processes.

    means: (sum, count) of each term, of `coord_accuracy` (share of slots whose most probable bin is the label) and
    of `coord_probability` (probability mass on coordinate ids). bin_errors: [S] distance between the expected and
    the unrounded target coordinate, in bins.
    """

    means: dict[str, tuple[torch.Tensor, int]]
    bin_errors: torch.Tensor


class DetectionCriterion(nn.Module):
    """Loss over text tokens, coordinate slots and boxes. `coord_start` is the id of `<|coord_0|>`."""

    def __init__(self, options: LossOptions, coord_start: int):
        super().__init__()
        self.options = options
        self.coord_start = coord_start
        self.terms: dict[str, LossTerm] = {name: LOSS_TERMS[name] for name, weight in options.weights.items() if weight}

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        targets: Targets,
        counts: Counts | None = None,
        progress: float = 1.0,
    ) -> tuple[torch.Tensor, LossReport]:
        """Loss of a micro-batch (scalar) and its report.

        logits: [B, L, V]. labels: [B, L] int64, -100 where not supervised; position i predicts label i + 1. counts:
        of the global batch; those of this micro-batch when None. progress: fraction of training done, in [0, 1].
        ValueError unless the batch has one coordinate target per coordinate label.
        """
        found = supervised_labels(labels, self.coord_start)
        if found.slots.numel() != targets.coords.numel():
            problem = f"{found.slots.numel()} coordinate labels, but {targets.coords.numel()} coordinate targets"
            raise ValueError(f"{problem} in the batch")
        local = Counts(found.ids.numel() - found.slots.numel(), found.slots.numel(), targets.boxes.shape[0])
        positions, ids, target_weights = text_targets(found, targets.soft)
        flat = logits.reshape(-1, logits.shape[-1])
        gathered, rejected = gather_with_rejected(flat, found, positions, ids, self.coord_start)

        slots = self._coordinate_slots(gathered, found, targets)
        expected = expectation(slots.p)
        target_index = torch.searchsorted(found.text, positions)
        text = TextLogits(gathered.lse[found.text], gathered.target, target_weights, target_index)
        sums = self._text_sums(text) | self._coordinate_sums(slots) | self._box_sums(expected, targets)
        sums |= {name: term.function(rejected, self.options).sum() for name, term in self._of_level("rejected")}

        loss = logits.new_zeros(())
        for name, total in sums.items():
            if scale := self._scale(name, progress):  # a term that is still warming up may be non-finite
                loss = loss + scale * total / self._count(name, counts or local)
        sizes = local._asdict() | {"rejected": rejected.numel()}
        means = {name: (total.detach(), sizes[self.terms[name].level]) for name, total in sums.items()}
        bins = found.ids[found.slots] - self.coord_start
        return loss, LossReport(means | diagnostics(slots, bins), (expected.detach() - targets.coords).abs() * LAST_BIN)

    def _coordinate_slots(self, gathered: GatheredLogits, found: SupervisedLabels, targets: Targets) -> CoordinateSlots:
        log_p = log_probabilities(gathered.coord, self.options.temperature)
        p = log_p.exp()
        log_mass = gathered.coord.logsumexp(dim=-1) - gathered.lse[found.slots]
        targets_of_slots = slot_targets(found.ids[found.slots] - self.coord_start, targets.coords, targets.soft)
        gaussian = gaussian_targets(targets_of_slots.coords, self.options.sigma, self.options.truncate)
        return CoordinateSlots(log_p, p, log_mass, targets_of_slots, gaussian)

    def _text_sums(self, text: TextLogits) -> dict[str, torch.Tensor]:
        return {name: term.function(text, self.options) for name, term in self._of_level("text")}

    def _coordinate_sums(self, slots: CoordinateSlots) -> dict[str, torch.Tensor]:
        return {name: term.function(slots, self.options).sum() for name, term in self._of_level("coordinate")}

    def _box_sums(self, expected: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
        """Box terms between boxes of expected coordinates and the ground-truth boxes that they are matched to."""
        terms = self._of_level("box")
        if not terms:
            return {}
        predicted, target = box_coordinates(expected, targets)[targets.boxes], targets.coords[targets.boxes]
        pairs = match(
            predicted,
            target,
            targets.images,
            targets.classes,
            self.options.matching,
            class_cost=self.options.class_cost,
        )
        matched = (predicted[pairs.predicted], target[pairs.target])
        return {name: (pairs.weight * term.function(*matched)).sum() for name, term in terms}

    def _of_level(self, level: str) -> list[tuple[str, LossTerm]]:
        return [(name, term) for name, term in self.terms.items() if term.level == level]

    def _scale(self, name: str, progress: float) -> float:
        weight = self.options.weights[name]
        return weight * self.options.geometry_warmup.factor(progress) if self.terms[name].level == "box" else weight

    def _count(self, name: str, counts: Counts) -> int:
        """What the sum of a term is divided by; few tokens are rejected, so theirs is divided as that of the text."""
        level = self.terms[name].level
        return max(getattr(counts, "text" if level == "rejected" else level), 1)


def gather_with_rejected(
    logits: torch.Tensor, found: SupervisedLabels, positions: torch.Tensor, ids: torch.Tensor, coord_start: int
) -> tuple[GatheredLogits, torch.Tensor]:
    """What `gather_logits` reads at the supervised rows, and the log probabilities [R] of the rejected tokens."""
    if not found.rejected_rows.numel():
        gathered = gather_logits(logits, found.rows, (positions, ids), found.slots, coord_start)
        return gathered, gathered.lse.new_zeros(0)
    rows = torch.cat([found.rows, found.rejected_rows]).sort().values
    kept, rejected = (torch.searchsorted(rows, part) for part in (found.rows, found.rejected_rows))
    pairs = torch.cat([kept[positions], rejected])
    order = pairs.argsort(stable=True)
    all_ids = torch.cat([ids, found.rejected_ids])[order]
    gathered = gather_logits(logits, rows, (pairs[order], all_ids), kept[found.slots], coord_start)
    targets = gathered.target[order.argsort()]
    log_p = targets[len(ids) :] - gathered.lse[rejected]
    return GatheredLogits(gathered.lse[kept], targets[: len(ids)], gathered.coord), log_p


def box_coordinates(expected: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Coordinates [S] that predicted boxes are built from: expectations, but ground truth at soft-target slots.

    Where any of several objects may come next, the expectation lies between them, while the following slots know
    from the prefix which object it was.
    """
    if targets.soft is None:
        return expected
    is_soft = torch.zeros_like(expected, dtype=torch.bool)
    is_soft[targets.soft.slots.slot] = True
    return torch.where(is_soft, targets.coords, expected)


@torch.no_grad()
def diagnostics(slots: CoordinateSlots, bins: torch.Tensor) -> dict[str, tuple[torch.Tensor, int]]:
    """(sum, count) of `coord_accuracy` and `coord_probability`; bins: [S] int64 labels."""
    return {
        "coord_accuracy": ((slots.log_p.argmax(dim=-1) == bins).sum(), bins.numel()),
        "coord_probability": (slots.log_mass.exp().sum(), bins.numel()),
    }
