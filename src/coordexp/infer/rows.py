"""Finished rows on disk while a shard is running, so that a killed job goes on where it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from coordexp.contract import Prediction
from coordexp.io import canonical_json


class _Row(msgspec.Struct):
    position: int
    prediction: Prediction


class RowStore:
    """`rows` maps a record's position in the shard to its prediction. The file lies hidden beside the output.

    Its first line says what it belongs to (`identity`); a file of anything else is started anew. A line that a
    kill cut off is dropped.
    """

    def __init__(self, out: Path, identity: Any):
        self.path = out.with_name(f".{out.name}.rows")
        self.rows: dict[int, Prediction] = {}
        self._head = canonical_json(identity).encode() + b"\n"
        self._encoder = msgspec.json.Encoder()
        out.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        if whole == 0:
            self.path.write_bytes(self._head)
        else:
            os.truncate(self.path, whole)

    def add(self, rows: Iterable[tuple[int, Prediction]]) -> None:
        """Keep finished rows, on disk before this returns."""
        with self.path.open("ab") as handle:
            for position, prediction in rows:
                self.rows[position] = prediction
                handle.write(self._encoder.encode(_Row(position, prediction)) + b"\n")
            handle.flush()
            os.fsync(handle.fileno())

    def remove(self) -> None:
        """Delete the file; the output is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> int:
        """Load the rows of a file with our head; the length in bytes of its whole lines (0: not ours)."""
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
                self.rows[row.position] = row.prediction
                whole += len(line)
            return whole
        return 0
