"""The checkpoint that detects best: detection every N steps, the best one kept and named, early stop on request.

What is best so far lives in the trainer's own state, and so in every checkpoint: a resumed run goes on with it.
"""

from __future__ import annotations

import os
import random
import time
from abc import ABC, abstractmethod
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
from coordexp.recipe import Custom
from coordexp.training.ms_swift.custom_section import custom_section

NAME = "coordexp_best"
LINK = "best"

logger = get_logger()


class Scorer(ABC):
    """What the callback asks; `coordexp.watch` has the decoder and the evaluation behind it."""

    @abstractmethod
    def __init__(self, custom: Custom, model_dir: Path):
        """Read the images that are asked; `model_dir` has the tokenizer."""

    @abstractmethod
    def answer(self, model: nn.Module, share: int, shares: int) -> list[Any]:
        """Answers to every `shares`-th image from `share` on, of a model in evaluation mode."""

    @abstractmethod
    def score(self, answers: list[Any]) -> dict[str, float]:
        """Numbers by the names of `custom.detection_eval.metric`, for the answers to all images."""


def register(scorer: type[Scorer]) -> None:
    """Make `--callbacks coordexp_best` known to ms-swift."""
    callbacks_map[NAME] = type("BestCallback", (BestCallback,), {"scorer": scorer})


class BestCallback(TrainerCallback):
    """Evaluates, logs `eval_AP` and its like, saves a new best, links it, and stops when patience is at its end."""

    scorer: type[Scorer]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the images."""
        self.settings = custom_section().detection_eval
        self.asked = self.scorer(custom_section(), Path(self.trainer.model.model_info.model_dir))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate when it is time; a new best is saved, and so is the state in which training stops early."""
        if state.global_step % self.settings.every and state.global_step != state.max_steps:
            return
        value = self._evaluate()
        if state.best_metric is None or value > state.best_metric:
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save = True
        if self.settings.is_over(state.log_history, state.best_global_step):
            since = self.settings.since_best(state.log_history, state.best_global_step)
            name = self.settings.metric
            logger.info(f"no better {name} in {since} evaluations: stopping; best {state.best_metric:.4f}")
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let `best` beside the checkpoints point to the best one."""
        if state.is_world_process_zero and state.best_model_checkpoint:
            link = Path(args.output_dir) / LINK
            fresh = link.with_name(f".{LINK}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(Path(state.best_model_checkpoint).name)
            os.replace(fresh, link)

    def _evaluate(self) -> float:
        """The metric of the model as it stands; every process answers its share and scores all."""
        trainer, began = self.trainer, time.monotonic()
        shares = trainer.args.world_size
        gather = trainer.args.ds3_gather_for_generation
        with undisturbed(trainer.model):
            with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, gather) as model:
                own = model.get_base_model() if isinstance(model, PeftModel) else model
                answers = self.asked.answer(own, trainer.args.process_index, shares)
            if shares > 1:
                parts: list[Any] = [None] * shares
                torch.distributed.all_gather_object(parts, answers)
                answers = [answer for part in parts for answer in part]
            numbers = self.asked.score(answers)
            # logged in evaluation mode, so that the terms of the loss are not cut in the middle of an interval
            logs = {f"eval_{name}": value for name, value in numbers.items()}
            due = trainer.control.should_log
            trainer.log({**logs, "eval_detection_runtime": round(time.monotonic() - began, 3)})
            trainer.control.should_log = due  # which logging takes away: the step's own row is still to come
        return numbers[self.settings.metric]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes and random numbers are what they were."""
    modes = {module: module.training for module in model.modules()}
    names = {name for family in FAMILIES.names() for name in FAMILIES[family].forward_state}
    left = [(module, name, getattr(module, name)) for module in model.modules() for name in names & vars(module).keys()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, value in left:
            setattr(module, name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
