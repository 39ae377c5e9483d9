"""Finished predictions on disk while a shard is running, so that a killed job can resume."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordexp.records import Prediction
from coordexp.runtime.io import canonical_json
from coordexp.runtime.progress import Progress


class _Row(msgspec.Struct):
    position: int
    prediction: msgspec.Raw


class ResumableWriter:
    """Predictions by the position of their record in the shard, in a hidden file next to the output.

    The first line of the file is `identity`, everything that the predictions depend on. A file with another identity is
    overwritten; an incomplete last line is dropped. Only file offsets are held in memory.
    """

    def __init__(self, out: Path, identity: Any):
        self.path = out.with_name(f".{out.name}.rows")
        self._spans: dict[int, tuple[int, int]] = {}  # position -> offset and length of its line
        self._header = canonical_json(identity).encode() + b"\n"
        self._encoder = msgspec.json.Encoder()
        out.parent.mkdir(parents=True, exist_ok=True)
        complete_bytes = self._read()
        if complete_bytes == 0:
            self.path.write_bytes(self._header)
        else:
            os.truncate(self.path, complete_bytes)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, position: int) -> bool:
        return position in self._spans

    def add(self, rows: Iterable[tuple[int, Prediction]]) -> None:
        """Append finished predictions; they are on disk when this returns."""
        with self.path.open("ab") as handle:
            for position, prediction in rows:
                line = self._encoder.encode(_Row(position, msgspec.Raw(self._encoder.encode(prediction)))) + b"\n"
                self._spans[position] = handle.tell(), len(line)
                handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())

    def add_batches(self, batches: Iterable[Sequence[tuple[int, Prediction]]], progress: Progress) -> None:
        """Append predictions as they are finished; counts images, `objects` and `tokens` in `progress`."""
        for rows in batches:
            self.add(rows)
            objects = sum(len(prediction.detections) for _, prediction in rows)
            progress.add(len(rows), objects=objects, tokens=sum(len(prediction.token_ids) for _, prediction in rows))

    def ordered(self, count: int) -> Iterator[msgspec.Raw]:
        """The encoded predictions of positions 0..`count`-1; KeyError if one is missing."""
        decoder = msgspec.json.Decoder(_Row)
        with self.path.open("rb") as handle:
            for position in range(count):
                offset, length = self._spans[position]
                handle.seek(offset)
                yield decoder.decode(handle.read(length)).prediction

    def remove(self) -> None:
        """Delete the file once the output is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> int:
        """Index the rows of an existing file; the length of its complete lines in bytes, 0 for another identity."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as handle:
            if handle.readline() != self._header:
                return 0
            end = len(self._header)
            decoder = msgspec.json.Decoder(_Row)
            for line in handle:
                try:
                    row = decoder.decode(line)
                except msgspec.DecodeError:
                    break
                if not line.endswith(b"\n"):
                    break
                self._spans[row.position] = end, len(line)
                end += len(line)
            return end
        return 0
