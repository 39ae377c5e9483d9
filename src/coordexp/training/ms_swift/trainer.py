"""ms-swift's trainer with the counts that the objective is normalised by, and a look at the first batch."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from swift.trainers import Seq2SeqTrainer, TrainerFactory
from swift.utils import get_logger

from coordexp.losses.criterion import Counts
from coordexp.modeling.adapter import OFFSET_MODULE
from coordexp.recipe import Custom
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.dataloader import sigterm_safe_loader
from coordexp.training.ms_swift.template import TARGETS

MOST_LEFT_OUT = 32  # a scale of 65,536 halved so often is far below 1: the numbers themselves are none

logger = get_logger()


def register() -> None:
    """Let ms-swift's SFT run in this trainer."""
    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.CoordTrainer"


class CoordTrainer(Seq2SeqTrainer):
    """`num_items_in_batch` becomes the counts of text, slots and boxes of the global batch, [3] int64.

    places: the records, as file:line, of this process in the current step. left_out: steps in a row whose gradients
    were no numbers.
    """

    places: list[str] = []  # noqa: RUF012 -- replaced, never changed
    left_out = 0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Check one batch against the recipe, and that the processes know of each other, then train."""
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.args.world_size:
            fix = "without a GPU set training.use_cpu: true"
            problem = f"{started} processes were started, but each would train by itself"
            raise ConfigError(located(problem, found=self.args.world_size, fix=fix))
        size = len(self.train_dataset)
        spread = range(0, size, max(size // 8, 1))[:8]  # images without objects may come first
        rows = [self.train_dataset[i] for i in spread]
        batch = self.data_collator(rows)
        counts = Counts(*batch[TARGETS]["counts"].tolist())
        trainable = {name: p.numel() for name, p in self.model.named_parameters() if p.requires_grad}
        check_start(counts, trainable, custom_section())
        return super().train(*args, **kwargs)

    def get_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """ms-swift's, whose processes outlive SIGTERM."""
        return sigterm_safe_loader(super().get_train_dataloader(*args, **kwargs))

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:  # of evaluation
        return sigterm_safe_loader(super()._get_dataloader(*args, **kwargs))

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Where detection chooses the checkpoint, an evaluation loss does not."""
        return not custom_section().detection_eval.every and super()._determine_best_metric(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        if not batch_samples or TARGETS not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        self.places = [place for batch in batch_samples for place in batch[TARGETS]["places"]]
        total = torch.stack([batch[TARGETS]["counts"].to(device) for batch in batch_samples]).sum(dim=0)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum(dim=0)
        return total

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None or math.isfinite(norm):
            self.left_out = 0
            return norm
        self.left_out += 1
        if self._scales_gradients() and self.left_out < MOST_LEFT_OUT:  # leaves out this step and lowers its scale
            return None  # not logged: JSON has no infinity
        in_a_row = f", {self.left_out} in a row" if self.left_out > 1 else ""
        raise DataError(
            f"gradient norm is {float(norm)} at step {self.state.global_step}{in_a_row}\n"
            f"  in {'; '.join(self.places)}\n"
            "  -> look at these records with `coordexp doctor`; lower the learning rate if they are sound"
        )

    def _scales_gradients(self) -> bool:
        """Whether a scaler looks for gradients that overflowed; `args.fp16` is also set for float32 without one."""
        if self.is_deepspeed_enabled:
            return bool(self.accelerator.state.deepspeed_plugin.deepspeed_config.get("fp16", {}).get("enabled"))
        return self.accelerator.scaler is not None


def check_start(counts: Counts, trainable: dict[str, int], custom: Custom) -> None:
    """Say what some samples supervise and what trains; ConfigError when that is not what the recipe means."""
    logger.info(
        f"some samples: {counts.text} text labels, {counts.slots} coordinate slots, {counts.boxes} boxes; "
        f"trainable: {sum(trainable.values()):,} parameters in {len(trainable)} tensors"
    )
    problems = []
    if not counts.text:
        problems.append("no text is supervised: are the answers empty?")
    if custom.coord_tokens.enabled != bool(counts.slots):
        problems.append(f"custom.coord_tokens.enabled is {custom.coord_tokens.enabled}, but {counts.slots} slots")
    if not trainable:
        problems.append("no parameter is trainable: see the `tuner` section")
    offsets = [name for name in trainable if OFFSET_MODULE in name]
    if custom.coord_offset.enabled != bool(offsets):
        problems.append(f"custom.coord_offset.enabled is {custom.coord_offset.enabled}, but trainable: {offsets}")
    if problems:
        raise ConfigError("training does not start:\n" + "\n".join(f"  {problem}" for problem in problems))
