"""Detection of repetition in an answer: copies of an object, and loops in a description."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

MAX_PERIOD = 4  # tokens of the longest loop that is detected in a description
_DESC = re.compile(rb'"desc"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)


class ObjectCopies:
    """The objects of an answer, to count the copies of one.

    Copies have the same description, and either the same coordinate bins or, for boxes, an IoU of at least `iou`:
    degenerate answers jitter the coordinates.
    """

    def __init__(self, iou: float):
        self.iou = iou
        self._bins: dict[bytes, list[tuple[int, ...]]] = defaultdict(list)
        self._all: list[tuple[int, ...]] = []
        self._at: tuple[tuple[int, ...], int] = (), 0  # result of the last `count_at`

    def add(self, desc: bytes, bins: tuple[int, ...]) -> None:
        """Record a complete object: its description, and four bins of a box or those of a polygon."""
        self._bins[desc].append(bins)
        self._all.append(bins)
        self._at = (), 0

    def count(self, desc: bytes, bins: tuple[int, ...]) -> int:
        """Recorded copies of an object."""
        return sum(self._equal(other, bins) for other in self._bins.get(desc, ()))

    def count_at(self, bins: tuple[int, ...]) -> int:
        """Recorded objects that would be copies if all had the same description."""
        if self._at[0] != bins:
            self._at = bins, sum(self._equal(other, bins) for other in self._all)
        return self._at[1]

    def _equal(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a == b or (len(a) == len(b) == 4 and _iou(a, b) >= self.iou)


def description(text: bytes) -> bytes | None:
    """The JSON-escaped description in the text of an answer between two coordinates; None if it has not begun."""
    match = _DESC.search(text)
    return match[1] if match else None


def ends_in_loop(tokens: Sequence[int], repeats: int, spelling: dict[int, bytes]) -> bool:
    """Whether `tokens` end in the same 1 to `MAX_PERIOD` tokens `repeats` times.

    spelling: bytes of each token. Repeated digits and punctuation are no loop: they occur in numbers ("100000").
    """
    for period in range(1, MAX_PERIOD + 1):
        tail = list(tokens[-period * repeats :])
        if len(tail) == period * repeats and tail == tail[-period:] * repeats:
            return any(_has_letter(spelling.get(token, b"")) for token in tail[-period:])
    return False


def _has_letter(data: bytes) -> bool:
    """Whether a token contains a letter; a byte of a multi-byte character counts as one."""
    return any(byte >= 0x80 or chr(byte).isalpha() for byte in data)


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
