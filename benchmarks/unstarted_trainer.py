"""An ms-swift trainer that has not started, its batches, and one optimizer step as the trainer's loop does it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def build_trainer(recipe: Any, model: Path, out: Path, *, plain: bool = False, use_cpu: bool | None = None) -> Any:
    """A trainer for a recipe; `plain`: with ms-swift's cross-entropy and trainer in place of ours.

    `use_cpu`: ms-swift's argument; None: its default.
    """
    import msgspec
    from swift.arguments import SftArguments
    from swift.pipelines import SwiftSft
    from swift.trainers import Seq2SeqTrainer, TrainerFactory

    from coordexp.training.ms_swift import custom_section, dataset, plugin
    from coordexp.training.swift_arguments import swift_arguments

    os.environ[custom_section.VARIABLE] = json.dumps(msgspec.to_builtins(recipe.custom))
    os.environ["IMAGE_MIN_TOKEN_NUM"] = "1"
    custom_section.custom_section.cache_clear()
    dataset.samples.cache_clear()
    arguments = swift_arguments(recipe, model, out, out)
    if plain:
        del arguments["loss_type"]
    if use_cpu is not None:
        arguments["use_cpu"] = use_cpu

    class Unstarted(SwiftSft):
        def train(self, trainer):
            return trainer

    plugin.register()
    pipeline = Unstarted(SftArguments(**arguments))
    if plain:
        TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{Seq2SeqTrainer.__module__}.Seq2SeqTrainer"
    trainer = pipeline.run()
    trainer.create_optimizer_and_scheduler(recipe.training["max_steps"])
    trainer.model.train()
    return trainer


def batches_of(trainer: Any, count: int = 4) -> list[dict]:
    """The first batches of the training data, collated."""
    size, rows = trainer.args.per_device_train_batch_size, trainer.train_dataset
    samples = [rows[n % len(rows)] for n in range(size * count)]
    return [trainer.data_collator([dict(s) for s in samples[n * size : (n + 1) * size]]) for n in range(count)]


def step(trainer: Any, batch: dict) -> None:
    """Counts of the batch, forward, loss, backward, clipping, optimizer."""
    import torch

    samples, count = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, samples[0], count)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
