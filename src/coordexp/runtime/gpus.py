"""GPUs of a job on a machine without a scheduler: those that no other job holds.

Each device has a lock file. The kernel releases the lock when the last process that inherited it ends, for whatever
reason.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from pathlib import Path

from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.locks import try_lock

VARIABLE = "CUDA_VISIBLE_DEVICES"
NAME = re.compile(r"\d+$|(GPU|MIG)-")
MACHINE = Path("/proc/driver/nvidia/gpus")  # the driver's list, one folder per GPU; reading it does not start CUDA
LOCKS = Path("/tmp")  # the same for all users of the machine, whatever their TMPDIR
POLL_SECONDS = 1


def take_gpus(granted: int) -> None:
    """Make `granted` GPUs that no other job holds visible to this process and its children; call it before CUDA starts.

    With 0 granted, none is visible. If $CUDA_VISIBLE_DEVICES already names exactly that many, as in a scheduler's job,
    it is kept and nothing is locked. Waits while other jobs hold too many. ConfigError if the machine has fewer.
    """
    visible = visible_gpus()
    if len(visible) < granted:
        fix = (
            "set --resources gpu=N to the number of GPUs that nvidia-smi lists, and list other devices in"
            f" {VARIABLE}; to use the CPU: --set-resources train:gpu=0 predict:gpu=0"
        )
        raise ConfigError(located("fewer GPUs than granted", field="gpu", expected=granted, found=visible, fix=fix))
    if not granted or VARIABLE not in os.environ or len(visible) > granted:
        os.environ[VARIABLE] = ",".join(_wait_for(granted, visible) if granted else [])


def visible_gpus() -> list[str]:
    """Names of the GPUs that CUDA would use: those in its variable up to the first invalid one, or all without it."""
    if VARIABLE not in os.environ:
        return [str(index) for index, _ in enumerate(MACHINE.iterdir() if MACHINE.is_dir() else ())]
    names = (name.strip() for name in os.environ[VARIABLE].split(","))
    return list(itertools.takewhile(NAME.match, names))


def _wait_for(count: int, visible: list[str]) -> list[str]:
    """Lock `count` of the `visible` GPUs for this process and its children; returns their names."""
    job = os.environ.get("SLURM_JOB_ID", "")  # in two jobs, the same number may be different devices
    files = {name: LOCKS / f"coordexp-gpu-{job}-{name.replace('/', '_')}.lock" for name in visible}
    printed = ""
    while len(taken := _take(count, files)) < count:
        held = {name: os.fsdecode(file.read_bytes()) for name, file in files.items() if name not in taken}
        holders = ", ".join(f"GPU {name} by process {holder}" for name, holder in held.items())
        text = f"waiting for {count} of {len(visible)} GPUs; held, possibly by child processes: {holders}"
        if text != printed:
            print(text, file=sys.stderr, flush=True)
        printed = text
        time.sleep(POLL_SECONDS)
    return taken


def _take(count: int, files: dict[str, Path]) -> list[str]:
    """Lock `count` GPUs, or none if fewer are free; returns the names of those that are free.

    One process tries at a time and never keeps a part, so two jobs that need several GPUs cannot block each other.
    """
    while (gate := try_lock(LOCKS / "coordexp-gpus.lock")) is None:
        time.sleep(0.02)
    locks = {name: lock for name, file in files.items() if (lock := try_lock(file)) is not None}
    free = list(locks)[:count]
    for name, lock in locks.items():
        if len(free) == count and name in free:
            os.set_inheritable(lock, True)
        else:
            os.close(lock)
    os.close(gate)
    return free
