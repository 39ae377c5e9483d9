"""Announces the number of steps and the disk space of the checkpoints, and after ten steps the remaining time."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback

from coordexp.runtime.estimates import announce, clock

NAME = "coordexp_time_estimate"
WARMUP_STEPS, MEASURED_UNTIL = 2, 10  # the first steps compile, allocate and fill caches


def register() -> None:
    """Register `--callbacks coordexp_time_estimate` with ms-swift."""
    callbacks_map[NAME] = TimeEstimateCallback


class TimeEstimateCallback(TrainerCallback):
    """Prints the estimates on rank 0; SpaceError if the disk lacks space for the checkpoints."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Announce steps and disk space."""
        self.first_step, self.start = state.global_step, time.monotonic()
        if state.is_world_process_zero and model is not None:
            size, count = checkpoint_bytes(model), checkpoint_count(args, state.max_steps)
            announce(
                "train",
                state.max_steps - state.global_step,
                "steps",
                folder=Path(args.output_dir),
                size=size * count,
                basis=f"at most {count} checkpoints of {size / 1e6:,.0f} MB, including the result",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the first steps, then print the estimated remaining time once."""
        done = state.global_step - self.first_step
        if done == WARMUP_STEPS:
            self.start = time.monotonic()
        if done == MEASURED_UNTIL and state.is_world_process_zero:
            measured = MEASURED_UNTIL - WARMUP_STEPS
            rate = measured / max(time.monotonic() - self.start, 1e-9)
            left = state.max_steps - state.global_step
            text = f"train: {left:,} steps left, about {clock(left / rate)} at {rate:,.2f} steps/s"
            print(f"{text} (measured on {measured} steps)", file=sys.stderr, flush=True)


def checkpoint_bytes(model: Any) -> int:
    """Bytes of a checkpoint: the saved parameters, and AdamW's two moments of the trainable ones."""
    # ZeRO-3 leaves empty tensors behind and keeps the actual count in `ds_numel`.
    parameters = [(getattr(p, "ds_numel", p.numel()) * p.element_size(), p.requires_grad) for p in model.parameters()]
    trainable = sum(size for size, requires_grad in parameters if requires_grad)
    saved = trainable if hasattr(model, "peft_config") else sum(size for size, _ in parameters)
    return saved + 2 * trainable


def checkpoint_count(args: Any, steps: int) -> int:
    """Most checkpoints on disk at the same time: old ones are deleted after a new one is written, one is published."""
    every = args.save_steps if args.save_steps >= 1 else args.save_steps * steps
    written = max(1, round(steps / every))
    return min(written, (args.save_total_limit or written) + 1) + 1
