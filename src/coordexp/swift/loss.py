"""The objective as an ms-swift loss, and the trainer that counts what it is normalised by."""

from __future__ import annotations

from typing import Any

import torch
from swift.loss import BaseLoss, loss_map
from swift.trainers import Seq2SeqTrainer, TrainerFactory

from coordexp.loss.objective import Counts, count, objective
from coordexp.model.vocab import coord_ids
from coordexp.swift.settings import custom_section
from coordexp.swift.targets import as_targets
from coordexp.swift.template import TARGETS

NAME = "coordexp"


def register() -> None:
    """Make `--loss_type coordexp` known and let SFT run in the trainer that counts slots and boxes."""
    loss_map[NAME] = CoordLoss
    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.CoordTrainer"


class CoordTrainer(Seq2SeqTrainer):
    """ms-swift's trainer; `num_items_in_batch` becomes the counts of text, slots and boxes, [3] int64."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        if not batch_samples or TARGETS not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        start = coord_ids(self.template.tokenizer).start
        parts = [count(batch["labels"], as_targets(batch[TARGETS]), start) for batch in batch_samples]
        total = torch.tensor(parts, device=device).sum(dim=0)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum(dim=0)
        return total


class CoordLoss(BaseLoss):
    """Calls `coordexp.loss.objective` and logs every term and diagnostic."""

    def __init__(self, args: Any, trainer: Any):
        super().__init__(args, trainer)
        self.weights = custom_section().loss
        self.coord_start = coord_ids(trainer.template.tokenizer).start

    def __call__(self, outputs: Any, labels: torch.Tensor, *, num_items_in_batch: Any = None, **_: Any) -> torch.Tensor:
        """Scalar loss of a micro-batch; `num_items_in_batch` holds the global counts."""
        counts = Counts(*num_items_in_batch.tolist()) if num_items_in_batch is not None else None
        state = self.trainer.state
        progress = state.global_step / max(state.max_steps, 1)
        loss, metrics = objective(
            outputs.logits, labels, outputs.coord_targets, self.weights, self.coord_start, counts, progress
        )
        log = self.trainer.custom_metrics["train" if self.trainer.model.training else "eval"]
        for name, value in metrics.items():
            log[name].update(value)
        return loss
