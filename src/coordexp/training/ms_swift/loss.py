"""The objective as an ms-swift loss, and what it logs."""

from __future__ import annotations

from typing import Any

import torch
from swift.loss import BaseLoss, loss_map

from coordexp.losses.criterion import Counts, Measured, objective
from coordexp.runtime.errors import DataError
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.metrics import Quantiles, Ratio, Total

NAME = "coordexp"


def register() -> None:
    """Make `--loss_type coordexp` known to ms-swift."""
    loss_map[NAME] = CoordLoss


class CoordLoss(BaseLoss):
    """Calls `coordexp.losses.criterion` and logs every term and diagnostic."""

    def __init__(self, args: Any, trainer: Any):
        super().__init__(args, trainer)
        self.weights = custom_section().loss
        self.coord_start = trainer.template.coord_start

    def __call__(self, outputs: Any, labels: torch.Tensor, *, num_items_in_batch: Any = None, **_: Any) -> torch.Tensor:
        """Scalar loss of a micro-batch; `num_items_in_batch` holds the global counts.

        DataError naming the batch's records when the loss is no finite number.
        """
        counts = Counts(*num_items_in_batch.tolist()) if num_items_in_batch is not None else None
        state = self.trainer.state
        progress = state.global_step / max(state.max_steps, 1)
        loss, measured = objective(
            outputs.logits, labels, outputs.coord_targets, self.weights, self.coord_start, counts, progress
        )
        if not torch.isfinite(loss):
            terms = ", ".join(f"{name} {total.item() / max(n, 1):.4g}" for name, (total, n) in measured.means.items())
            raise DataError(
                f"loss is {loss.item()} at step {state.global_step} ({terms})\n  in {'; '.join(outputs.places)}\n"
                "  -> look at these records with `coordexp doctor`; lower the learning rate if they are sound"
            )
        self._log(measured, outputs.tally)
        return loss

    def _log(self, measured: Measured, tally: dict[str, int]) -> None:
        log = self.trainer.custom_metrics["train" if self.trainer.model.training else "eval"]
        for name, (total, count) in measured.means.items():
            log.setdefault(name, Ratio()).update(total, count)
        for name, count in tally.items():
            log.setdefault(name, Total()).update(count)
        log.setdefault("bin_error", Quantiles()).update(measured.bin_errors)
