"""The ms-swift loss `coordexp`: `DetectionCriterion` on the outputs of a micro-batch, and what it logs."""

from __future__ import annotations

from typing import Any

import torch
from swift.loss import BaseLoss, loss_map

from coordexp.losses.criterion import Counts, DetectionCriterion, LossReport
from coordexp.runtime.errors import DataError
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.metrics import Mean, Quantiles, Total

NAME = "coordexp"


def register() -> None:
    """Register `--loss_type coordexp` with ms-swift."""
    loss_map[NAME] = CoordLoss


class CoordLoss(BaseLoss):
    """Evaluates the criterion of the recipe and logs every term and diagnostic."""

    def __init__(self, args: Any, trainer: Any):
        super().__init__(args, trainer)
        self.criterion = DetectionCriterion(custom_section().loss, trainer.template.coord_start)

    def __call__(self, outputs: Any, labels: torch.Tensor, *, num_items_in_batch: Any = None, **_: Any) -> torch.Tensor:
        """Scalar loss of a micro-batch; `num_items_in_batch` is [3] int64, the `Counts` of the global batch.

        DataError that names the records of the batch if the loss is not finite.
        """
        counts = Counts(*num_items_in_batch.tolist()) if num_items_in_batch is not None else None
        state = self.trainer.state
        progress = state.global_step / max(state.max_steps, 1)
        loss, report = self.criterion(outputs.logits, labels, outputs.coord_targets, counts, progress)
        if not torch.isfinite(loss):
            terms = ", ".join(f"{name} {total.item() / max(n, 1):.4g}" for name, (total, n) in report.means.items())
            raise DataError(
                f"loss is {loss.item()} at step {state.global_step} ({terms})\n"
                f"  records: {'; '.join(outputs.source_lines)}\n"
                "  -> inspect these records with `coordexp doctor`; if they are valid, lower the learning rate"
            )
        self._log(report, outputs.logged)
        return loss

    def _log(self, report: LossReport, counted: dict[str, int]) -> None:
        log = self.trainer.custom_metrics["train" if self.trainer.model.training else "eval"]
        for name, (total, count) in report.means.items():
            log.setdefault(name, Mean()).update(total, count)
        for name, count in counted.items():
            log.setdefault(name, Total()).update(count)
        log.setdefault("bin_error", Quantiles()).update(report.bin_errors)
