"""Selects the best checkpoint: evaluates detection every N steps, keeps the best step, and can stop early.

The best step so far is part of the trainer's state, and so of every checkpoint: a resumed run continues with it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from swift.utils import get_logger
from swift.utils.transformers_utils import unwrap_model_for_generation
from torch import nn

from coordexp.modeling.families import FAMILIES
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.scorer import Scorer

NAME = "coordexp_best"
LINK = "best"

logger = get_logger()


def register(scorer: type[Scorer]) -> None:
    """Register `--callbacks coordexp_best` with ms-swift."""
    callbacks_map[NAME] = type("BestCheckpointCallback", (BestCheckpointCallback,), {"scorer_type": scorer})


class BestCheckpointCallback(TrainerCallback):
    """Evaluates, logs the metrics as `eval_AP` etc., saves and links a new best checkpoint, and stops early."""

    scorer_type: type[Scorer]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Load the images to evaluate."""
        self.settings = custom_section().detection_eval
        self.scorer = self.scorer_type(custom_section(), Path(self.trainer.model.model_info.model_dir))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate if due; save a new best checkpoint, and the last one when stopping early.

        Of equal checkpoints the last one is the best, as it has been trained longest.
        """
        if not self.settings.is_due(state.global_step, state.epoch, state.max_steps):
            return
        control.should_save |= self.settings.every == "epoch"
        value = self._evaluate()
        if state.best_metric is None or value >= state.best_metric:
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save = True
        if self.settings.patience_exhausted(state.log_history):
            count = self.settings.evaluations_since_improvement(state.log_history)
            metric = self.settings.metric
            logger.info(f"stopping early: no better {metric} than {state.best_metric:.4f} in {count} evaluations")
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Point the link `best` in the folder of checkpoints to the best one."""
        if state.is_world_process_zero and state.best_model_checkpoint:
            link = Path(args.output_dir) / LINK
            new_link = link.with_name(f".{LINK}")
            new_link.unlink(missing_ok=True)
            new_link.symlink_to(Path(state.best_model_checkpoint).name)
            os.replace(new_link, link)

    def _evaluate(self) -> float:
        """The metric of the current model; every process predicts its share of the images and scores all of them."""
        trainer, start = self.trainer, time.monotonic()
        world_size = trainer.args.world_size
        with evaluation_mode(trainer.model):
            with base_for_generation(trainer) as base:
                rank = trainer.args.process_index
                predictions = self.scorer.predict(base, rank, world_size)
                measured = self.scorer.diagnose(base, rank, world_size)
            values = self.scorer.score(_gathered(predictions, world_size))
            values |= self.scorer.diagnostics(_gathered(measured, world_size))
            if text := self.scorer.caution(values):
                logger.warning(f"step {trainer.state.global_step}: {text}")
            # Logged in evaluation mode, so that the running means of the loss terms are not reset within an interval.
            logs = {f"eval_{name}": value for name, value in values.items() if value is not None}
            due = trainer.control.should_log
            trainer.log({**logs, "eval_detection_runtime": round(time.monotonic() - start, 3)})
            trainer.control.should_log = due  # cleared by logging, although the log line of this step is still due
        return values[self.settings.metric] or 0.0  # undefined: no better than nothing


def _gathered(items: list[Any], world_size: int) -> list[Any]:
    """The items of all ranks."""
    if world_size == 1:
        return items
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


@contextmanager
def base_for_generation(trainer: Any) -> Iterator[nn.Module]:
    """The model in training without the wrappers of distributed training and of PEFT; its adapters are active."""
    gather = trainer.args.ds3_gather_for_generation
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, gather) as model:
        yield model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards, modes, forward state and random numbers are restored."""
    modes = {module: module.training for module in model.modules()}
    names = {name for family in FAMILIES.names() for name in FAMILIES[family].forward_state}
    forward_state = [
        (module, name, getattr(module, name)) for module in model.modules() for name in names & vars(module).keys()
    ]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, value in forward_state:
            setattr(module, name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
