"""torchrun without its tracebacks: a process that fails has printed its own error, and an interruption is no error."""

from __future__ import annotations

import sys


def run() -> int:
    """Run torchrun with the arguments of the command line; returns its exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main()
    except SignalException as interrupted:
        return 128 + interrupted.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"training process {rank} ended first, with exit code {failure.exitcode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
