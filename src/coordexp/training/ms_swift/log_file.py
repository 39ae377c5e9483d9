"""The log of a training run, `logging.jsonl`: as ms-swift writes it, without its progress bar and printed dictionaries.

The process that started the training prints one line per row (`training.supervise`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from swift.callbacks.base import TrainerCallback
from swift.trainers.patcher import add_train_message
from swift.utils import append_to_jsonl
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from coordexp.training.supervise import LOG


def replace_printer(trainer: Any) -> None:
    """Write the log of `trainer` to its file only."""
    for printer in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printer)
    trainer.add_callback(LogFileCallback(packed=bool(trainer.template.packing)))


class LogFileCallback(TrainerCallback):
    """Appends a row per logging step on rank 0, with the speed since the start or the resumption of training.

    packed: the number of images per step varies, so their rate is not logged.
    """

    def __init__(self, *, packed: bool) -> None:
        self.packed, self.first_step, self.start = packed, 0, time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.first_step, self.start = state.global_step, time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write a row."""
        row = dict(logs or {})
        add_train_message(row, state, self.start, self.first_step)
        seconds = row["train_speed(s/it)"]
        if seconds and not self.packed:
            images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            row["images_per_second"] = round(images / seconds, 3)
        if state.is_world_process_zero:
            append_to_jsonl(str(Path(args.output_dir) / LOG), row)
