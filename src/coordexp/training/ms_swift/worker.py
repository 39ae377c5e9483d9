"""One training process: runs ms-swift for the job that `coordexp.training.train` has written."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from coordexp.runtime.errors import CoordExpError
from coordexp.runtime.io import read_json
from coordexp.runtime.locks import end_with_parent
from coordexp.runtime.plugins import load_plugins
from coordexp.training.checkpoints import complete_checkpoints
from coordexp.training.job import Job
from coordexp.training.ms_swift.custom_section import VARIABLE


def run(job_file: Path, *registrations: Callable[[], None]) -> None:
    """Run ms-swift for a job in this process (one of several with torchrun), after further registrations with it."""
    end_with_parent()
    load_plugins()
    job = msgspec.convert(read_json(job_file), Job)
    os.environ[VARIABLE] = json.dumps(job.custom)
    for name, value in tracker_folders(Path(job.arguments["logging_dir"]).parent.parent).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("IMAGE_MIN_TOKEN_NUM", "1")  # images are on the grid already and must not be enlarged
    import torch
    from swift.arguments import SftArguments
    from swift.pipelines.train import sft
    from swift.utils import get_logger

    from coordexp.training.ms_swift import plugin
    from coordexp.training.ms_swift.arguments import checked

    if "LOG_LEVEL" not in os.environ:
        get_logger().addFilter(_worth_reading)
    for register in (plugin.register, *registrations):
        register()
    # On a CPU, several processes find each other only with use_cpu.
    arguments = {"use_cpu": not torch.accelerator.is_available(), **checked(job.arguments)}
    checkpoints = complete_checkpoints(job.checkpoints)
    if checkpoints:
        print(f"resuming from {checkpoints[-1]}", flush=True)
        arguments["resume_from_checkpoint"] = str(checkpoints[-1])
    sft.plot_images = lambda *_: None  # a figure per logged value would take seconds; the report has curves
    sft.SwiftSft(SftArguments(**arguments)).main()


def tracker_folders(folder: Path) -> dict[str, str]:
    """Where experiment trackers write their files, by environment variable: beside the TensorBoard files."""
    return {
        "WANDB_DIR": str(folder),
        "SWANLAB_LOG_DIR": str(folder / "swanlab"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }


def _worth_reading(record: logging.LogRecord) -> bool:
    """Warnings, and messages of this package; ms-swift's own are 500 lines, most of which args.json repeats."""
    return record.levelno > logging.INFO or Path(record.pathname).is_relative_to(Path(__file__).parent)


def main(*registrations: Callable[[], None]) -> None:
    """Command line: run the job file given as the only argument."""
    try:
        run(Path(sys.argv[1]), *registrations)
    except CoordExpError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
