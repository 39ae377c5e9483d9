"""Wall time, CPU time and peak memory of a call with all its processes, for the data benchmarks."""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from pathlib import Path

EVERY = 0.05  # seconds between two samples of the memory


def measured(function, *args) -> dict:
    """Wall seconds, CPU seconds and peak memory of a call in a new process.

    Peak memory is the largest sum of the proportional set sizes of all its processes, in MB; shared pages count once.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    peak = {"mb": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            peak["mb"] = max(peak["mb"], sum(_pss(pid) for pid in _family(process.pid)))

    start, before = time.perf_counter(), _cpu()
    process.start()
    watcher = threading.Thread(target=watch)
    watcher.start()
    process.join()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")
    return {"seconds": round(seconds, 2), "cpu_seconds": round(_cpu() - before, 2), "peak_mb": round(peak["mb"])}


def _cpu() -> float:
    """CPU seconds of all finished children and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def _pss(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
