"""Before the first step: how many there are and what the checkpoints will take; after ten: how long the rest takes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback

from coordexp.runtime.estimates import announce, clock

NAME = "coordexp_forecast"
WARM, MEASURED = 2, 10  # steps: the first ones compile, allocate and fill caches


def register() -> None:
    """Make `--callbacks coordexp_forecast` known to ms-swift."""
    callbacks_map[NAME] = ForecastCallback


class ForecastCallback(TrainerCallback):
    """Speaks in the first process alone; SpaceError when the disk has no room for the checkpoints."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Announce steps and disk."""
        self.first_step, self.began = state.global_step, time.monotonic()
        if state.is_world_process_zero and model is not None:
            size, count = checkpoint_bytes(model), checkpoint_count(args, state.max_steps)
            announce(
                "train",
                state.max_steps - state.global_step,
                "steps",
                folder=Path(args.output_dir),
                size=size * count,
                basis=f"{count} checkpoints of {size / 1e6:,.0f} MB at a time, the result included",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the first steps, and say once what the rest will take."""
        done = state.global_step - self.first_step
        if done == WARM:
            self.began = time.monotonic()
        if done == MEASURED and state.is_world_process_zero:
            rate = (MEASURED - WARM) / max(time.monotonic() - self.began, 1e-9)
            left = state.max_steps - state.global_step
            text = f"train: {left:,} steps left, about {clock(left / rate)} at {rate:,.2f} steps/s"
            print(f"{text} (measured on {MEASURED - WARM} steps)", file=sys.stderr, flush=True)


def checkpoint_bytes(model: Any) -> int:
    """Bytes of a checkpoint: what is saved of the model, and AdamW's two moments of what trains."""
    # ZeRO-3 leaves empty tensors behind and keeps the true count in `ds_numel`.
    parameters = [(getattr(p, "ds_numel", p.numel()) * p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trains in parameters if trains)
    saved = trained if hasattr(model, "peft_config") else sum(size for size, _ in parameters)
    return saved + 2 * trained


def checkpoint_count(args: Any, steps: int) -> int:
    """The most checkpoints on disk at once: an old one goes after a new one is written, and one is published."""
    every = args.save_steps if args.save_steps >= 1 else args.save_steps * steps
    written = max(1, round(steps / every))
    return min(written, (args.save_total_limit or written) + 1) + 1
