"""Merge the predictions of shards, and calibrate their scores if a calibration is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordexp.inference import calibrate
from coordexp.records import Prediction, software_file
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines, read_json, write_json, write_jsonl

_decoder = msgspec.json.Decoder(Prediction)


def gather(
    shards: Sequence[str | Path],
    out: str | Path,
    calibration: str | Path | None = None,
    *,
    records: str | Path | None = None,
) -> int:
    """Write the predictions of `shards`, given in shard order, to `out` in the order of the records; their count.

    calibration: file written by `calibrate.fit`; scores in `out` become probabilities, the shards keep the raw ones.
    records: the records that were predicted, to check the number of predictions.

    DataError if a line is invalid, if the counts do not match, or if the calibration was fitted with other options that
    scores depend on.
    """
    lines = [_raw_lines(Path(shard)) for shard in shards]
    for number, shard in enumerate(lines):
        expected = len(lines[0]) - (0 if number == 0 else int(len(shard) < len(lines[0])))
        if len(shard) != expected or (number and len(shard) > len(lines[number - 1])):
            fix = "pass every shard once, in order"
            problem = "the number of predictions does not match the other shards"
            raise DataError(located(problem, file=shards[number], expected=expected, found=len(shard), fix=fix))
    if records is not None:
        _check_count(lines, shards, records)
    longest = max((len(shard) for shard in lines), default=0)
    ordered: Iterator[Any] = (msgspec.Raw(shard[n]) for n in range(longest) for shard in lines if n < len(shard))
    if calibration is not None:
        fitted = calibrate.load(calibration)
        for shard in shards:
            fitted.check(calibrate.options_of(shard), shard)
        ordered = (calibrate.calibrated(msgspec.json.decode(line, type=Prediction), fitted) for line in ordered)
    count = write_jsonl(out, ordered)
    write_json(software_file(out), _software(shards))
    return count


def _software(shards: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The distinct descriptions of the software that made the shards; shards of unknown origin have none."""
    found = [entry for shard in shards if software_file(shard).is_file() for entry in read_json(software_file(shard))]
    return [entry for n, entry in enumerate(found) if entry not in found[:n]]


def _check_count(lines: list[list[bytes]], shards: Sequence[str | Path], records: str | Path) -> None:
    expected, found = sum(1 for _ in enumerate_lines(records)), sum(map(len, lines))
    if found != expected:
        names = ", ".join(map(str, shards))
        fix = "delete the incomplete file and run the command again: it will be predicted again"
        problem = f"the number of predictions does not match the number of records in {records}"
        raise DataError(located(problem, file=names, expected=expected, found=found, fix=fix))


def _raw_lines(path: Path) -> list[bytes]:
    """The lines of a predictions file, each checked to be a prediction."""
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    for number, line in enumerate(lines, start=1):
        try:
            _decoder.decode(line)
        except msgspec.DecodeError as error:
            fix = "delete the file and run the command again: the shard will be predicted again"
            raise DataError(located(f"not a prediction: {error}", file=path, line=number, fix=fix)) from error
    return lines
