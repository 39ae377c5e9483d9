"""Progress of long stages: a bar on a terminal, a plain line every few seconds in a log file.

The bar is tqdm's. Snakemake sends stderr to a log file, where a bar that redraws itself would be one unreadable line;
there every report is a line of its own.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, TextIO

from tqdm import tqdm

from coordexp.runtime.estimates import clock

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Progress of the stage `name` towards `total` in `unit` (None if unknown), on stderr. Thread-safe.

    `scale` divides amounts before they are shown, so that bytes are counted and megabytes reported. `counted` names
    further counts whose rates are reported, such as objects in addition to images.
    """

    def __init__(
        self,
        name: str,
        total: float | None,
        unit: str,
        *,
        scale: float = 1.0,
        counted: tuple[str, ...] = (),
        stream: TextIO | None = None,
    ) -> None:
        self.counts = dict.fromkeys(counted, 0.0)
        self._lock = threading.Lock()
        self._bar = _Bar(name, total, unit, scale, stream or sys.stderr)

    def resume_at(self, done: float) -> None:
        """Start from work that an earlier run finished; the rate counts from here."""
        with self._lock:
            self._bar.restart(done)

    def set_total(self, total: float) -> None:
        """Set the total once it is known."""
        with self._lock:
            self._bar.total = total

    def add(self, amount: float = 1, **counts: float) -> None:
        """Count `amount` more, and further `counts` by name; report if the last report is a few seconds old."""
        with self._lock:
            for name, count in counts.items():
                self.counts[name] += count
            self._bar.postfix = self._rates()
            self._bar.update(amount)

    def note(self, text: str) -> None:
        """Write a line at once."""
        with self._lock:
            self._bar.write_line(f"{self._bar.desc}: {text}")

    def finish(self) -> dict[str, float]:
        """Report a last time; the amount of this run, its `counts`, its seconds and their rates per second."""
        with self._lock:
            self._bar.postfix = self._rates()
            self._bar.report_and_close()
            done, seconds = self._bar.n - self._bar.initial, self._bar.seconds()
            amounts = {self._bar.name_of_unit: done, **self.counts}
            rates = {f"{name}_per_second": amount / seconds for name, amount in amounts.items()}
            return {**amounts, "seconds": seconds, **rates}

    def _rates(self) -> str | None:
        seconds = self._bar.seconds()
        return ", ".join(f"{count / seconds:,.1f} {name}/s" for name, count in self.counts.items()) or None


class _Bar(tqdm):
    """tqdm that writes plain lines where its stream is no terminal."""

    monitor_interval = 0  # no thread of tqdm's own, since stages fork

    def __init__(self, name: str, total: float | None, unit: str, scale: float, stream: TextIO) -> None:
        self.terminal, self.scale, self.name_of_unit = stream.isatty(), scale, unit
        waiting = 0.1 if self.terminal else SECONDS_BETWEEN_LINES
        shown: dict[str, Any] = {"unit": f" {unit}", "unit_scale": 1 / scale if scale != 1 else False}
        # With a delay tqdm does not report 0 before the first update.
        super().__init__(desc=name, total=total, file=stream, mininterval=waiting, miniters=0, delay=1e-9, **shown)
        self.restart(0)

    def restart(self, done: float) -> None:
        """Count from `done`, from now on."""
        self._time = time.monotonic
        self.n = self.initial = self.last_print_n = done
        self.start_t = self.last_print_t = self._time()

    def seconds(self) -> float:
        """Seconds since the start; never 0."""
        return max(self._time() - self.start_t, 1e-9)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Redraw the bar, or write a line."""
        if self.terminal:
            super().display(msg, pos)
        else:
            self.write_line(self.line())

    def line(self) -> str:
        """`convert: 1,000 of 4,000 images (25%), 100.0 images/s, 0:00:30 left`."""
        rate = (self.n - self.initial) / self.seconds()
        of = f" of {self.total / self.scale:,.0f}" if self.total else ""
        share = f" ({self.n / self.total:.0%})" if self.total else ""
        text = f"{self.desc}: {self.n / self.scale:,.0f}{of} {self.name_of_unit}{share}"
        text += f", {rate / self.scale:,.1f} {self.name_of_unit}/s"
        text += f", {self.postfix}" if self.postfix else ""
        if self.total and rate > 0 and self.n < self.total:
            text += f", {clock((self.total - self.n) / rate)} left"
        return text

    def write_line(self, text: str) -> None:
        """Write `text` on a line of its own."""
        if self.terminal:
            self.write(text, file=self.fp)
        else:
            print(text, file=self.fp, flush=True)

    def report_and_close(self) -> None:
        """Report regardless of the time since the last report, and end the line."""
        self.refresh()
        if self.terminal:
            self.close()
        else:
            self.disable = True
            self._decr_instances(self)
