"""Finished rows on disk while a shard is running, so that a killed job goes on where it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from coordexp.records import Prediction
from coordexp.runtime.io import canonical_json


class _Row(msgspec.Struct):
    position: int
    prediction: msgspec.Raw


class ResumableWriter:
    """Predictions by the position of their record in the shard, in a hidden file beside the output.

    The first line says what the file belongs to (`identity`); a file of anything else is started anew, and a
    line that a kill cut off is dropped. Only places in the file are held in memory.
    """

    def __init__(self, out: Path, identity: Any):
        self.path = out.with_name(f".{out.name}.rows")
        self._places: dict[int, tuple[int, int]] = {}
        self._head = canonical_json(identity).encode() + b"\n"
        self._encoder = msgspec.json.Encoder()
        out.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        if whole == 0:
            self.path.write_bytes(self._head)
        else:
            os.truncate(self.path, whole)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, position: int) -> bool:
        return position in self._places

    def add(self, rows: Iterable[tuple[int, Prediction]]) -> None:
        """Keep finished rows, on disk before this returns."""
        with self.path.open("ab") as handle:
            for position, prediction in rows:
                line = self._encoder.encode(_Row(position, msgspec.Raw(self._encoder.encode(prediction)))) + b"\n"
                self._places[position] = handle.tell(), len(line)
                handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())

    def ordered(self, count: int) -> Iterator[msgspec.Raw]:
        """The encoded predictions of positions 0..`count`-1; KeyError for one that is not there."""
        decoder = msgspec.json.Decoder(_Row)
        with self.path.open("rb") as handle:
            for position in range(count):
                offset, length = self._places[position]
                handle.seek(offset)
                yield decoder.decode(handle.read(length)).prediction

    def remove(self) -> None:
        """Delete the file; the output is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> int:
        """Find the rows of a file with our head; the length in bytes of its whole lines (0: not ours)."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as handle:
            if handle.readline() != self._head:
                return 0
            whole = len(self._head)
            decoder = msgspec.json.Decoder(_Row)
            for line in handle:
                try:
                    row = decoder.decode(line)
                except msgspec.DecodeError:
                    break
                if not line.endswith(b"\n"):
                    break
                self._places[row.position] = whole, len(line)
                whole += len(line)
            return whole
        return 0
