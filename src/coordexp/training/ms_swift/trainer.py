"""ms-swift's trainer with the global counts that the criterion divides by, and a check of the first samples."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from swift.trainers import Seq2SeqTrainer, TrainerFactory, mixin
from swift.utils import get_logger

from coordexp.losses.criterion import Counts
from coordexp.modeling.adapter import OFFSET_MODULE
from coordexp.recipe import Custom
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.dataloader import ShuffledBatches, sigterm_safe_loader
from coordexp.training.ms_swift.log_file import replace_printer
from coordexp.training.ms_swift.template import TARGETS

# A loss scale of 65,536 that is halved this often is far below 1: then the values themselves are non-finite.
MAX_SKIPPED_STEPS = 32

logger = get_logger()


def register() -> None:
    """Make ms-swift's SFT use this trainer and its batches."""
    mixin.BatchSamplerShard = ShuffledBatches
    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.CoordTrainer"


class CoordTrainer(Seq2SeqTrainer):
    """Passes the `Counts` of the global batch, [3] int64, to the loss as `num_items_in_batch`.

    source_lines: the records, as file:line, of this process in the current step. skipped_steps: consecutive steps
    whose gradients were not finite. replace_samples: replaces samples of the micro-batches of a step, in place, before
    they are counted.
    """

    source_lines: list[str] = []  # noqa: RUF012 -- replaced, never changed
    skipped_steps = 0
    replace_samples: Callable[[list], None] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Check some samples against the recipe, and that all processes train together; then train."""
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.args.world_size:
            fix = "without a GPU set training.use_cpu: true"
            problem = "each process would train separately: wrong world size"
            found = self.args.world_size
            raise ConfigError(located(problem, expected=started, found=found, fix=fix))
        size = len(self.train_dataset)
        indices = range(0, size, max(size // 8, 1))[:8]  # spread out: images without objects may come first
        batch = self.data_collator([self.train_dataset[i] for i in indices])
        counts = Counts(*batch[TARGETS]["counts"].tolist())
        trainable = {name: p.numel() for name, p in self.model.named_parameters() if p.requires_grad}
        check_start(counts, trainable, custom_section())
        replace_printer(self)
        return super().train(*args, **kwargs)

    def get_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """ms-swift's loader, whose processes survive SIGTERM."""
        return sigterm_safe_loader(super().get_train_dataloader(*args, **kwargs))

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:  # the loader of evaluation
        return sigterm_safe_loader(super()._get_dataloader(*args, **kwargs))

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Best by evaluation loss, unless detection selects the checkpoint."""
        return not custom_section().detection_eval.every and super()._determine_best_metric(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The micro-batches of an optimizer step, and the counts of the global batch."""
        batches, counts = super().get_batch_samples(*args, **kwargs)
        if self.replace_samples is None or not batches:
            return batches, counts
        self.replace_samples(batches)
        return batches, self._get_num_items_in_batch(batches, self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        if not batch_samples or TARGETS not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        self.source_lines = [line for batch in batch_samples for line in batch[TARGETS]["source_lines"]]
        total = torch.stack([batch[TARGETS]["counts"].to(device) for batch in batch_samples]).sum(dim=0)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum(dim=0)
        return total

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None or math.isfinite(norm):
            self.skipped_steps = 0
            return norm
        self.skipped_steps += 1
        if self._scales_gradients() and self.skipped_steps < MAX_SKIPPED_STEPS:  # the scaler skips the step
            return None  # not logged: JSON has no infinity
        steps = f", {self.skipped_steps} consecutive steps" if self.skipped_steps > 1 else ""
        raise DataError(
            f"gradient norm is {float(norm)} at step {self.state.global_step}{steps}\n"
            f"  records: {'; '.join(self.source_lines)}\n"
            "  -> inspect these records with `coordexp doctor`; if they are valid, lower the learning rate"
        )

    def _scales_gradients(self) -> bool:
        """Whether a gradient scaler handles overflow; `args.fp16` may be set for float32 training without one."""
        if self.is_deepspeed_enabled:
            return bool(self.accelerator.state.deepspeed_plugin.deepspeed_config.get("fp16", {}).get("enabled"))
        return self.accelerator.scaler is not None


def check_start(counts: Counts, trainable: dict[str, int], custom: Custom) -> None:
    """Log what some samples supervise and what is trainable; ConfigError if that contradicts the recipe."""
    logger.info(
        f"first samples: {counts.text} text labels, {counts.coordinate} coordinate slots, {counts.box} boxes; "
        f"trainable: {sum(trainable.values()):,} parameters in {len(trainable)} tensors"
    )
    problems = []
    if not counts.text:
        problems.append("no text is supervised: are the answers empty?")
    if custom.coord_tokens.enabled != bool(counts.coordinate):
        found = f"but the samples have {counts.coordinate} coordinate slots"
        problems.append(f"custom.coord_tokens.enabled is {custom.coord_tokens.enabled}, {found}")
    if not trainable:
        problems.append("no parameter is trainable: check the `tuner` section")
    offsets = [name for name in trainable if OFFSET_MODULE in name]
    if custom.coord_offset.enabled != bool(offsets):
        found = f"but the trainable offsets are {offsets}"
        problems.append(f"custom.coord_offset.enabled is {custom.coord_offset.enabled}, {found}")
    if problems:
        raise ConfigError("training cannot start:\n" + "\n".join(f"  {problem}" for problem in problems))
