"""Detection of repetition in an answer: copies of an object, and loops in a description."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

MAX_PERIOD = 4  # tokens of the longest loop that is detected in a description


class ObjectCopies:
    """The objects of an answer, and when the copies among them end it.

    Copies have the same description, and either the same coordinate bins or, for boxes, an IoU of at least `iou`:
    degenerate answers jitter the coordinates. An answer ends at the `max_repeats`-th copy of an object and, if
    `max_suppressed` is given, after as many objects in a row that `SuppressedCopies` suppresses.
    """

    def __init__(self, iou: float, max_repeats: int, max_suppressed: int | None = None):
        self.iou, self.max_repeats, self.max_suppressed = iou, max_repeats, max_suppressed
        self._suppressed = SuppressedCopies(iou)
        self._bins: dict[bytes, list[tuple[int, ...]]] = defaultdict(list)
        self._all: list[tuple[int, ...]] = []
        self._at: tuple[tuple[int, ...], int] = (), 0  # result of the last `_count_at`

    def add(self, desc: bytes, bins: tuple[int, ...]) -> None:
        """Record a complete object: its description, and four bins of a box or those of a polygon."""
        self._bins[desc].append(bins)
        self._all.append(bins)
        self._at = (), 0
        self._suppressed.add(desc, bins)

    def end_answer(self, desc: bytes, bins: tuple[int, ...]) -> bool:
        """Whether the answer must end after this object, which is not recorded yet."""
        copies = sum(is_copy(other, bins, self.iou) for other in self._bins.get(desc, ()))
        if copies + 1 >= self.max_repeats:
            return True
        return self._at_last_suppressed() and self._suppressed.is_copy(desc, bins)

    def can_end_answer(self, bins: tuple[int, ...]) -> bool:
        """Whether the answer must end after an object with these coordinates and some description."""
        copies = self._count_at(bins)
        return copies + 1 >= self.max_repeats or (copies > 0 and self._at_last_suppressed())

    def _at_last_suppressed(self) -> bool:
        return self.max_suppressed is not None and self._suppressed.in_a_row + 1 >= self.max_suppressed

    def _count_at(self, bins: tuple[int, ...]) -> int:
        """Recorded objects that would be copies if all had the same description."""
        if self._at[0] != bins:
            self._at = bins, sum(is_copy(other, bins, self.iou) for other in self._all)
        return self._at[1]


class SuppressedCopies:
    """Suppression of copies in the order of generation: an object is suppressed if it copies an earlier kept one.

    Objects with different descriptions never suppress each other. in_a_row: suppressed objects since the last kept one.
    """

    def __init__(self, iou: float):
        self.iou, self.in_a_row = iou, 0
        self._kept: dict[str | bytes, list[tuple[int, ...]]] = defaultdict(list)

    def is_copy(self, desc: str | bytes, bins: tuple[int, ...]) -> bool:
        """Whether the object would be suppressed."""
        return any(is_copy(other, bins, self.iou) for other in self._kept.get(desc, ()))

    def add(self, desc: str | bytes, bins: tuple[int, ...]) -> bool:
        """Record the next object; returns whether it is kept."""
        suppressed = self.is_copy(desc, bins)
        self.in_a_row = self.in_a_row + 1 if suppressed else 0
        if not suppressed:
            self._kept[desc].append(bins)
        return not suppressed


def is_copy(a: tuple[int, ...], b: tuple[int, ...], iou: float) -> bool:
    """Whether two objects with the same description are copies: identical bins, or boxes with an IoU of >= `iou`."""
    return a == b or (len(a) == len(b) == 4 and _iou(a, b) >= iou)


def ends_in_loop(tokens: Sequence[int], repeats: int, spelling: dict[int, bytes]) -> bool:
    """Whether `tokens` end in the same 1 to `MAX_PERIOD` tokens `repeats` times.

    spelling: bytes of each token. Repeated digits and punctuation of any script are no loop: "100000" is a number.
    """
    for period in range(1, MAX_PERIOD + 1):
        tail = list(tokens[-period * repeats :])
        if len(tail) == period * repeats and tail == tail[-period:] * repeats:
            return _has_letter(b"".join(spelling.get(token, b"") for token in tail))
    return False


def _has_letter(data: bytes) -> bool:
    """Whether the characters that are complete include a letter; True if none is complete."""
    text = data.decode(errors="ignore")
    return not text or any(map(str.isalpha, text))


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
