"""Shards put together again, with calibrated scores where a calibration is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordexp.inference import calibrate
from coordexp.records import Prediction
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines, write_jsonl

_decoder = msgspec.json.Decoder(Prediction)


def gather(
    parts: Sequence[str | Path],
    out: str | Path,
    calibration: str | Path | None = None,
    *,
    records: str | Path | None = None,
) -> int:
    """Put the shards `parts`, in the order of their numbers, back into the order of the records; the count.

    `calibration` is a file of `calibrate.fit`: scores become probabilities on the way, the shards keep the raw ones.
    `records`, the file that was predicted, says how many predictions there must be. DataError when lines are missing.
    """
    rows = [_raw_lines(Path(part)) for part in parts]
    for number, part in enumerate(rows):
        expected = len(rows[0]) - (0 if number == 0 else int(len(part) < len(rows[0])))
        if len(part) != expected or (number and len(part) > len(rows[number - 1])):
            fix = "give every shard once, in the order of their numbers"
            raise DataError(
                located("shards do not fit together", file=parts[number], expected=expected, found=len(part), fix=fix)
            )
    if records is not None:
        _check_count(rows, parts, records)
    longest = max((len(part) for part in rows), default=0)
    ordered: Iterator[Any] = (msgspec.Raw(part[n]) for n in range(longest) for part in rows if n < len(part))
    if calibration is not None:
        learnt = calibrate.load(calibration)
        ordered = (calibrate.calibrated(msgspec.json.decode(line, type=Prediction), learnt) for line in ordered)
    return write_jsonl(out, ordered)


def _check_count(rows: list[list[bytes]], parts: Sequence[str | Path], records: str | Path) -> None:
    expected, found = sum(1 for _ in enumerate_lines(records)), sum(map(len, rows))
    if found != expected:
        names = ", ".join(map(str, parts))
        fix = "delete what is cut off and give the same command again: it is made anew"
        problem = f"predictions and records ({records}) differ in number"
        raise DataError(located(problem, file=names, expected=expected, found=found, fix=fix))


def _raw_lines(path: Path) -> list[bytes]:
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    for number, line in enumerate(lines, start=1):
        try:
            _decoder.decode(line)
        except msgspec.DecodeError as error:
            fix = "delete the file and give the same command again: the shard is predicted anew"
            raise DataError(located(f"not a prediction: {error}", file=path, line=number, fix=fix)) from error
    return lines
