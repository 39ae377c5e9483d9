"""One training process: runs ms-swift for a job that `coordexp.training.train` wrote."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec

from coordexp.runtime.errors import CoordExpError
from coordexp.runtime.io import read_json
from coordexp.runtime.locks import end_with_parent
from coordexp.training.checkpoints import whole_checkpoints
from coordexp.training.ms_swift.custom_section import VARIABLE
from coordexp.training.train import Job


def run(job_file: Path) -> None:
    """Run ms-swift for a job in this process (one of several under torchrun)."""
    end_with_parent()
    job = msgspec.convert(read_json(job_file), Job)
    os.environ[VARIABLE] = json.dumps(job.custom)
    os.environ.setdefault("IMAGE_MIN_TOKEN_NUM", "1")  # images are already on the grid: never enlarge them
    import torch
    from swift.arguments import SftArguments
    from swift.pipelines import SwiftSft

    from coordexp.training.ms_swift.arguments import checked

    # Several processes without a GPU find each other only when told that they train on the CPU.
    arguments = {"use_cpu": not torch.accelerator.is_available(), **checked(job.arguments)}
    whole = whole_checkpoints(job.checkpoints)
    if whole:
        print(f"resuming from {whole[-1]}", flush=True)
        arguments["resume_from_checkpoint"] = str(whole[-1])
    SwiftSft(SftArguments(**arguments)).main()


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except CoordExpError as error:
        sys.exit(f"error: {error}")
