"""Writes checksums and completion marker of a checkpoint after all of its other files, and saves on SIGTERM."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback

from coordexp.modeling.checksums import write_checksums
from coordexp.runtime.io import write_text
from coordexp.training.checkpoints import COMPLETION_MARKER, rotate
from coordexp.training.ms_swift.dataset import set_epoch

NAME = "coordexp_checkpoints"


def register() -> None:
    """Register `--callbacks coordexp_checkpoints` with ms-swift."""
    callbacks_map[NAME] = CheckpointCallback


class CheckpointCallback(TrainerCallback):
    """Marks complete checkpoints; on SIGTERM saves one at the end of the step and stops."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Handle SIGTERM (preemption, `scancel`), and delete old checkpoints here instead of in transformers.

        transformers would delete old checkpoints before the new one is marked complete.
        """
        self.terminated = False
        self.limit, args.save_total_limit = args.save_total_limit, None
        signal.signal(signal.SIGTERM, self._terminate)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the samples of this epoch; with packing always those of epoch 0, whose lengths the packs fit."""
        epoch = int((state.epoch or 0) + 1e-6)
        set_epoch(0 if self.trainer.template.packing else epoch, min(epoch / max(state.num_train_epochs, 1), 1.0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After SIGTERM to any process, save and stop in all processes at the same step."""
        self.terminated = _any_process(self.terminated, args.device)
        if self.terminated:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """When all processes have written their files, mark the checkpoint complete; then delete old ones."""
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_checksums(checkpoint)
            write_text(checkpoint / COMPLETION_MARKER, f"{state.global_step}\n")
            rotate(args.output_dir, self.limit, state.best_global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Exit with the code of SIGTERM if training was interrupted, so that it does not count as finished."""
        if self.terminated and state.global_step < state.max_steps:
            raise SystemExit(128 + signal.SIGTERM)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True


def _any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())
