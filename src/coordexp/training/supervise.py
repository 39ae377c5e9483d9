"""Waits for the training processes: passes signals on to them and reports their progress on the console."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from coordexp.evaluation.image_use import caution
from coordexp.runtime.notices import CONSOLE_FD, notice

SECONDS_BETWEEN_READS, SECONDS_UNTIL_NOTICE = 0.5, 60.0
LOG = "logging.jsonl"  # in the folder of the checkpoints


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


def progress_line(row: Mapping[str, Any]) -> str | None:
    """A row of the log as a line for the console: of a step, or of an evaluation; None for other rows."""
    if "eval_AP" in row:
        return _evaluation_line(row)
    if "loss" not in row:
        return None
    step, _, total = row["global_step/max_steps"].partition("/")
    parts = [f"train: step {int(step):,} of {int(total):,}", f"loss {row['loss']:.4g}"]
    if "bin_error_median" in row:
        parts.append(f"median error {row['bin_error_median']:.3g} bins")
    if "images_per_second" in row:
        parts.append(f"{row['images_per_second']:,.3g} images/s")
    return ", ".join([*parts, f"{row['remaining_time']} left"])


def _evaluation_line(row: Mapping[str, Any]) -> str:
    """Detection at one step, and whether the model uses the image."""
    step, _, total = row["global_step/max_steps"].partition("/")
    parts = [f"train: evaluation at step {int(step):,} of {int(total):,}, AP {row['eval_AP']:.3f}"]
    if "eval_train_AP" in row:
        parts.append(f"on training images {row['eval_train_AP']:.3f}")
    if "eval_AP_other_image" in row:
        parts.append(f"with another image {row['eval_AP_other_image']:.3f}")
    text = caution(row.get("eval_image_gain"), row.get("eval_answer_agreement"))
    return ", ".join([*parts, f"warning: {text}"] if text else parts)


class LogReader:
    """Reads the rows that are appended to a log of JSON lines from now on."""

    def __init__(self, log: Path) -> None:
        self.log, self.offset = log, log.stat().st_size if log.exists() else 0

    def new_rows(self) -> list[dict[str, Any]]:
        """The complete rows since the last call."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as lines:
            lines.seek(self.offset)
            complete = lines.read().rpartition(b"\n")[0]
        self.offset += len(complete) + bool(complete)
        return [json.loads(line) for line in complete.splitlines() if line.startswith(b"{")]


def _start(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=env, close_fds=False)  # it inherits the lock, held until the last one ends


@contextmanager
def _reports(log: Path) -> Iterator[None]:
    """Print a line for every logged step; and once, if none is logged within a minute."""
    ended = threading.Event()
    reader = LogReader(log)
    started = time.monotonic()

    def report(*, waiting: bool) -> bool:
        found = [line for row in reader.new_rows() if (line := progress_line(row))]
        for line in found:
            notice(line)
        if waiting and not found and time.monotonic() - started > SECONDS_UNTIL_NOTICE:
            notice("train: no step logged yet")
            return False
        return waiting and not found

    def watch() -> None:
        waiting = True
        while not ended.wait(SECONDS_BETWEEN_READS):
            waiting = report(waiting=waiting)
        report(waiting=False)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
