"""The GPUs of one job, on a machine where nobody else hands them out: those that no other job holds.

Each device is held by a lock on a file of its own. The kernel lets go of it when the last process that inherited it
has ended, however that came about.
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
MACHINE = Path("/proc/driver/nvidia/gpus")  # the driver's: a folder a GPU; to look there starts no CUDA
LOCKS = Path("/tmp")  # one place for all users of the machine, whatever their TMPDIR
POLL_SECONDS = 1


def take_gpus(granted: int) -> None:
    """Show this process and its children `granted` GPUs that no other job holds, before any of them starts CUDA.

    None granted: none is seen. When $CUDA_VISIBLE_DEVICES names just as many, as in a scheduler's job, it stays as it
    is and nothing is locked. Waits while other jobs hold too many. ConfigError when there are fewer than granted.
    """
    visible = visible_gpus()
    if len(visible) < granted:
        fix = (
            "give --resources gpu=N with what nvidia-smi lists; devices that are not NVIDIA's are named in"
            f" {VARIABLE}; --set-resources train:gpu=0 predict:gpu=0 is for the CPU"
        )
        raise ConfigError(located("not as many GPUs as granted", field="gpu", expected=granted, found=visible, fix=fix))
    if not granted or VARIABLE not in os.environ or len(visible) > granted:
        os.environ[VARIABLE] = ",".join(_wait_for(granted, visible) if granted else [])


def visible_gpus() -> list[str]:
    """Names of the GPUs that CUDA would use: its list ends at the first name that is none. Without one, all."""
    if VARIABLE not in os.environ:
        return [str(index) for index, _ in enumerate(MACHINE.iterdir() if MACHINE.is_dir() else ())]
    names = (name.strip() for name in os.environ[VARIABLE].split(","))
    return list(itertools.takewhile(NAME.match, names))


def _wait_for(count: int, visible: list[str]) -> list[str]:
    """`count` of `visible`, held from now on by this process and its children."""
    job = os.environ.get("SLURM_JOB_ID", "")  # two jobs may mean different devices by the same number
    files = {name: LOCKS / f"coordexp-gpu-{job}-{name.replace('/', '_')}.lock" for name in visible}
    told = ""
    while len(taken := _take(count, files)) < count:
        held = {name: os.fsdecode(file.read_bytes()) for name, file in files.items() if name not in taken}
        holders = ", ".join(f"GPU {name} by process {holder}" for name, holder in held.items())
        text = f"waiting for {count} of {len(visible)} GPUs; held, perhaps by what these started: {holders}"
        if text != told:
            print(text, file=sys.stderr, flush=True)
        told = text
        time.sleep(POLL_SECONDS)
    return taken


def _take(count: int, files: dict[str, Path]) -> list[str]:
    """`count` names, now held; or fewer, those that are free, and none is held: two jobs that want several never wait
    for each other. One process tries at a time."""
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
