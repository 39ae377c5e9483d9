"""Several JSONL files as one training set: `custom.fusion_config`.

```yaml
extends: base.yaml        # optional; one file or a list, relative to this one
seed: 17                  # of the mixture
epoch_size: null          # images an epoch, shared out by ratio; null: ratio x length of each source
sources:
  lvis: {jsonl: lvis/train.coord.jsonl, ratio: 1.0}
  mine: {jsonl: mine/train.coord.jsonl, ratio: 0.5, seed: 3, user_prompt: "Find every part.", categories: mine.json}
```
A source's images come in shuffled rounds: none returns before all others were seen, across epochs too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from coordexp.records import CoordSpace, Record, check_record, decode_record
from coordexp.runtime.config_io import convert, read_extended
from coordexp.runtime.errors import ConfigError, DataError, located

PATHS = ("jsonl", "categories")  # keys of a source that name a file


class FusionSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the mixture. The prompt and answer settings left at None are the recipe's.

    jsonl: relative to the fusion file. ratio: share of the file that an epoch takes (2 = all of it
    twice), or its weight if the mixture has an `epoch_size`. seed: of this source's shuffling.
    user_prompt, category_prompt: its prompt. object_field_order, json_format: its answer template.
    categories: table of its category ids, relative to the fusion file: one that `samples.write_table` wrote, or
    the Source manifest of its data set, whose names then read as `desc` says. None: the run's own table.
    """

    jsonl: str
    ratio: float = 1.0
    seed: int = 0
    user_prompt: str | None = None
    category_prompt: str | None = None
    object_field_order: Literal["desc_first", "geometry_first"] | None = None
    json_format: Literal["standard", "compact"] | None = None
    categories: str | None = None
    desc: Literal["pretty", "raw"] = "pretty"

    @property
    def style(self) -> dict[str, str]:
        """The prompt and answer settings that this source has of its own, by their names in PromptStyle."""
        names = ("user_prompt", "category_prompt", "object_field_order", "json_format")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class FusionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A resolved mixture; `sources` by name, in the order of the file, with absolute paths."""

    sources: dict[str, FusionSource]
    seed: int = 17
    epoch_size: int | None = None


class Fusion:
    """Sources opened: where each line lies, in which unit, and what an epoch is made of.

    Memory is one integer a image. DataError when a source is empty or any of its records is not
    in space `expect`, naming file and line.
    """

    def __init__(self, config: FusionConfig, expect: CoordSpace):
        self.config, self.expect = config, expect
        self.names = list(config.sources)
        self.offsets = [_line_offsets(source.jsonl, expect) for source in config.sources.values()]
        self.quotas = quotas(config, [len(o) for o in self.offsets])

    def epoch(self, number: int) -> np.ndarray:
        """(source, line) int64 [N, 2] of epoch `number` (from 0), shuffled; the same on every call and machine."""
        rows = []
        for i, (source, lines, quota) in enumerate(
            zip(self.config.sources.values(), self.offsets, self.quotas, strict=True)
        ):
            chosen = _rounds(len(lines), number * quota, quota, (self.config.seed, source.seed, i))
            rows.append(np.stack([np.full(quota, i), chosen], axis=1))
        mixed = np.concatenate(rows)
        return mixed[np.random.default_rng([self.config.seed, number]).permutation(len(mixed))]

    def record(self, source: int, line: int) -> tuple[Record, Path, FusionSource]:
        """One image (line from 0), its file and its source's settings."""
        settings = self.config.sources[self.names[source]]
        path = Path(settings.jsonl)
        with path.open("rb") as handle:
            handle.seek(int(self.offsets[source][line]))
            record = decode_record(handle.readline(), path, line + 1)
        return check_record(record, self.expect, f"{path}:{line + 1}"), path, settings


def load(path: str | Path) -> FusionConfig:
    """The mixture at `path` (YAML or JSON) with what it `extends`; ConfigError when it is not sound.

    A source set to null drops an inherited one.
    """
    raw = read_extended(path, _absolute)
    config = convert(raw | {"sources": _sources(raw, path)}, FusionConfig, path)
    if not config.sources:
        raise ConfigError(located("no sources", file=path, field="sources", fix="name at least one JSONL file"))
    for name, source in config.sources.items():
        if not (np.isfinite(source.ratio) and source.ratio > 0):
            fix = "give a positive number, or set the source to null to drop it"
            where = f"sources.{name}.ratio"
            raise ConfigError(located("cannot mix this", file=path, field=where, found=source.ratio, fix=fix))
        for key in PATHS:
            file = getattr(source, key)
            if file is not None and not Path(file).is_file():
                raise ConfigError(located("file not found", file=path, field=f"sources.{name}.{key}", found=file))
    return config


def files(path: str | Path, key: Literal["jsonl", "categories"] = "jsonl") -> list[Path]:
    """The files that the mixture at `path` names under `key`, absolute, whether they are there or not."""
    sources = _sources(read_extended(path, _absolute), path).values()
    return [Path(source[key]) for source in sources if isinstance(source, dict) and source.get(key) is not None]


def _sources(raw: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The sources of a map that may not be checked yet, without those that are set to null."""
    sources = raw.get("sources") or {}
    if not isinstance(sources, dict):
        raise ConfigError(located("not a map by name", file=path, field="sources", found=type(sources).__name__))
    return {name: source for name, source in sources.items() if source is not None}


def _absolute(raw: dict[str, Any], path: Path) -> None:
    for source in _sources(raw, path).values():
        for key in PATHS:
            if isinstance(source, dict) and isinstance(source.get(key), str):
                source[key] = str((path.parent / source[key]).resolve())


def quotas(config: FusionConfig, lengths: list[int]) -> list[int]:
    """Images that each source gives an epoch.

    Without `epoch_size` ratio x length, rounded, at least one; with it, `epoch_size` shared out in
    proportion to the ratios by largest remainders.
    """
    ratios = np.array([source.ratio for source in config.sources.values()])
    if config.epoch_size is None:
        return [max(1, round(ratio * n)) for ratio, n in zip(ratios.tolist(), lengths, strict=True)]
    exact = config.epoch_size * ratios / ratios.sum()
    whole = np.floor(exact).astype(int)
    most = np.argsort(whole - exact, kind="stable")[: config.epoch_size - whole.sum()]
    whole[most] += 1
    return whole.tolist()


def _rounds(length: int, start: int, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """`count` line numbers from place `start` of an endless sequence of shuffled rounds."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    first, last = start // length, (start + count - 1) // length
    rounds = [np.random.default_rng([*seed, r]).permutation(length) for r in range(first, last + 1)]
    return np.concatenate(rounds)[start - first * length :][:count]


class _Unit(msgspec.Struct):
    coord_space: str


_unit = msgspec.json.Decoder(_Unit)


def _line_offsets(path: str, expect: CoordSpace) -> np.ndarray:
    offsets, position = [], 0
    with Path(path).open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                _check_unit(line, expect, path, number)
                offsets.append(position)
            position += len(line)
    if not offsets:
        fix = "drop the source, or check its conversion's statistics"
        raise DataError(located("no records", file=path, fix=fix))
    return np.array(offsets, dtype=np.int64)


def _check_unit(line: bytes, expect: CoordSpace, path: str, number: int) -> None:
    try:
        found = _unit.decode(line).coord_space
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise DataError(located(f"not a record: {error}", file=path, line=number)) from error
    if found != expect:
        fix = f"give the mixture a file in {expect} space; nothing converts units silently"
        raise DataError(
            located("wrong unit", file=path, line=number, field="coord_space", expected=expect, found=found, fix=fix)
        )
