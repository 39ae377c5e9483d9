"""Marks checkpoints as whole when everything else of them is on disk."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback

from coordexp.runtime.io import write_text
from coordexp.training.checkpoints import MARK, rotate
from coordexp.training.ms_swift.dataset import set_epoch

NAME = "coordexp_checkpoints"


def register() -> None:
    """Make `--callbacks coordexp_checkpoints` known to ms-swift."""
    callbacks_map[NAME] = CheckpointCallback


class CheckpointCallback(TrainerCallback):
    """Marks whole checkpoints; on SIGTERM saves one at the end of the step and stops."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take SIGTERM (preemption, `scancel`) as a request to save and stop; take over what is kept.

        transformers deletes old checkpoints before the new one is marked.
        """
        self.terminated = False
        self.limit, args.save_total_limit = args.save_total_limit, None
        signal.signal(signal.SIGTERM, self._terminate)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw this epoch's samples; with packing the first one's, whose lengths the packs were planned by."""
        set_epoch(0 if self.trainer.template.packing else int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, all processes at the same step, when one was asked to end."""
        self.terminated = _any(self.terminated, args.device)
        if self.terminated:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that all processes have written their part of; then delete old ones."""
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / MARK, f"{state.global_step}\n")
            rotate(args.output_dir, self.limit, state.best_global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An interrupted run must not look finished."""
        if self.terminated and state.global_step < state.max_steps:
            raise SystemExit(128 + signal.SIGTERM)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True


def _any(flag: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())
