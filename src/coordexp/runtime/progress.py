"""A line on stderr now and then: how far, how fast, how long still."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

EVERY = 5.0  # seconds between lines


class Progress:
    """Counts towards `total` (None when unknown) in `unit` and reports at most every few seconds. Thread-safe."""

    def __init__(self, what: str, total: float | None, unit: str, scale: float = 1.0, stream: TextIO | None = None):
        self.what, self.total, self.unit, self.scale = what, total, unit, scale
        self.stream = stream
        self.done, self.start, self.first = 0.0, time.monotonic(), 0.0
        self._last, self._lock = time.monotonic(), threading.Lock()

    def resume_at(self, done: float) -> None:
        """Count work of an earlier run: it is done, but tells nothing about the rate."""
        with self._lock:
            self.done = self.first = done
            self.start = time.monotonic()

    def add(self, amount: float) -> None:
        """Count `amount` more and report if it is time to."""
        with self._lock:
            self.done += amount
            if time.monotonic() - self._last >= EVERY:
                self._report()

    def note(self, text: str) -> None:
        """Say something at once."""
        with self._lock:
            print(f"{self.what}: {text}", file=self.stream or sys.stderr, flush=True)

    def finish(self) -> None:
        """Report a last time."""
        with self._lock:
            self._report()

    def _report(self) -> None:
        self._last = time.monotonic()
        rate = (self.done - self.first) / max(self._last - self.start, 1e-9)
        text = f"{self.what}: {self.done / self.scale:,.0f}"
        if self.total:
            text += f" of {self.total / self.scale:,.0f} {self.unit} ({self.done / self.total:.0%})"
        else:
            text += f" {self.unit}"
        text += f", {rate / self.scale:,.1f} {self.unit}/s"
        if self.total and rate > 0 and self.done < self.total:
            left = int((self.total - self.done) / rate)
            text += f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        print(text, file=self.stream or sys.stderr, flush=True)
