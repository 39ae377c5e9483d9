"""Waits for the training processes: passes signals on to them and reports their progress on the console."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from coordexp.runtime.notices import CONSOLE_FD, console

SECONDS_BETWEEN_REPORTS = 60.0
LOG = "logging.jsonl"  # written by ms-swift in the folder of the checkpoints


class Outcome(NamedTuple):
    """How the training processes ended; `interrupted` if this process received SIGINT or SIGTERM."""

    code: int
    interrupted: bool


def supervise(command: list[str], env: Mapping[str, str], checkpoints: Path) -> Outcome:
    """Run `command` to its end. Ctrl-C and SIGTERM make it save and stop; a second Ctrl-C kills it."""
    # Only this process reports on the console: torchrun's workers do not inherit its file descriptor.
    env = {name: value for name, value in env.items() if name != CONSOLE_FD}
    if threading.current_thread() is not threading.main_thread():
        return Outcome(_start(command, env).wait(), interrupted=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Ctrl-C reaches all processes of a terminal. The children ignore it, and receive SIGTERM from here instead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = _start(command, env)
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        if number == signal.SIGINT and number in received:
            child.kill()
        received.append(number)
        child.send_signal(signal.SIGTERM)

    for number in before:
        signal.signal(number, forward)
    try:
        with _reports(checkpoints / LOG):
            return Outcome(child.wait(), bool(received))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress_line(log: Path) -> str | None:
    """The last logged step, loss and remaining time; None before the first one."""
    try:
        rows = [json.loads(line) for line in _tail(log).splitlines() if line.endswith("}") and line.startswith("{")]
    except (OSError, ValueError):
        return None
    row = next((row for row in reversed(rows) if "loss" in row), None)
    if row is None:
        return None
    step, _, total = row["global_step/max_steps"].partition("/")
    return f"train: step {int(step):,} of {int(total):,}, loss {row['loss']:.4g}, {row['remaining_time']} left"


def _start(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=env, close_fds=False)  # it inherits the lock, held until the last one ends


def _tail(file: Path, size: int = 65536) -> str:
    with file.open("rb") as lines:
        lines.seek(max(file.stat().st_size - size, 0))
        return lines.read().decode(errors="replace")


@contextmanager
def _reports(log: Path) -> Iterator[None]:
    """Print a progress line on the console every minute."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(SECONDS_BETWEEN_REPORTS):
            console(progress_line(log) or "train: no step logged yet")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
