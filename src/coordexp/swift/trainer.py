"""ms-swift's trainer with the counts that the objective is normalised by, and a look at the first batch."""

from __future__ import annotations

from typing import Any

import torch
from swift.trainers import Seq2SeqTrainer, TrainerFactory
from swift.utils import get_logger

from coordexp.errors import ConfigError
from coordexp.loss.objective import Counts, count
from coordexp.model.adapter import OFFSET_MODULE
from coordexp.recipe import Custom
from coordexp.swift.settings import custom_section
from coordexp.swift.targets import as_targets
from coordexp.swift.template import TARGETS

logger = get_logger()


def register() -> None:
    """Let ms-swift's SFT run in this trainer."""
    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.CoordTrainer"


class CoordTrainer(Seq2SeqTrainer):
    """`num_items_in_batch` becomes the counts of text, slots and boxes of the global batch, [3] int64."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Check one batch against the recipe, then train."""
        rows = [self.train_dataset[i] for i in range(min(8, len(self.train_dataset)))]
        batch = self.data_collator(rows)
        counts = count(batch["labels"], as_targets(batch[TARGETS]), self.template.coord_start)
        trainable = {name: p.numel() for name, p in self.model.named_parameters() if p.requires_grad}
        check_start(counts, trainable, custom_section())
        return super().train(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        if not batch_samples or TARGETS not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        start = self.template.coord_start
        parts = [count(batch["labels"], as_targets(batch[TARGETS]), start) for batch in batch_samples]
        total = torch.tensor(parts, device=device).sum(dim=0)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum(dim=0)
        return total


def check_start(counts: Counts, trainable: dict[str, int], custom: Custom) -> None:
    """Say what the first samples supervise and what trains; ConfigError when that is not what the recipe means."""
    logger.info(
        f"first samples: {counts.text} text labels, {counts.slots} coordinate slots, {counts.boxes} boxes; "
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
