"""Several JSONL files as one training set: `custom.fusion_config`.

```yaml
extends: base.yaml        # optional; one file or a list, relative to this one
seed: 17                  # of the mixture
epoch_size: null          # pictures an epoch, shared out by ratio; null: ratio x length of each source
sources:
  lvis: {jsonl: lvis/train.coord.jsonl, ratio: 1.0}
  mine: {jsonl: mine/train.coord.jsonl, ratio: 0.5, seed: 3, user_prompt: "Find every part."}
```
A source's pictures come in shuffled rounds: none returns before all others were seen, across epochs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import yaml

from coordexp.contract import CoordSpace, Record, check_record
from coordexp.errors import ConfigError, DataError, located, nearest
from coordexp.io import decode_record


class FusionSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the mixture. The prompt and answer settings left at None are the recipe's.

    jsonl: relative to the fusion file. ratio: share of the file that an epoch takes (2 = all of it
    twice), or its weight if the mixture has an `epoch_size`. seed: of this source's shuffling.
    user_prompt, category_prompt: its prompt. object_field_order, json_format: its answer template.
    """

    jsonl: str
    ratio: float = 1.0
    seed: int = 0
    user_prompt: str | None = None
    category_prompt: str | None = None
    object_field_order: Literal["desc_first", "geometry_first"] | None = None
    json_format: Literal["standard", "compact"] | None = None

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

    Memory is one integer a picture. DataError when a source is empty or any of its records is not
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
        """One picture (line from 0), its file and its source's settings."""
        settings = self.config.sources[self.names[source]]
        path = Path(settings.jsonl)
        with path.open("rb") as handle:
            handle.seek(int(self.offsets[source][line]))
            record = decode_record(handle.readline(), path, line + 1)
        return check_record(record, self.expect, f"{path}:{line + 1}"), path, settings


def load(path: str | Path) -> FusionConfig:
    """The mixture at `path` (YAML or JSON) with what it `extends`; ConfigError when it is not sound.

    Maps merge key by key, later files win; a source set to null drops an inherited one.
    """
    raw = _read_extended(Path(path).resolve(), ())
    raw["sources"] = {k: v for k, v in (raw.get("sources") or {}).items() if v is not None}
    _reject_unknown(raw, FusionConfig, path, "")
    for name, source in raw["sources"].items():
        _reject_unknown(source, FusionSource, path, f"sources.{name}.")
    try:
        config = msgspec.convert(raw, FusionConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(located(str(error), file=path)) from error
    if not config.sources:
        raise ConfigError(located("no sources", file=path, field="sources", fix="name at least one JSONL file"))
    for name, source in config.sources.items():
        if not (np.isfinite(source.ratio) and source.ratio > 0):
            fix = "give a positive number, or set the source to null to drop it"
            where = f"sources.{name}.ratio"
            raise ConfigError(located("cannot mix this", file=path, field=where, found=source.ratio, fix=fix))
        if not Path(source.jsonl).is_file():
            raise ConfigError(located("file not found", file=path, field=f"sources.{name}.jsonl", found=source.jsonl))
    return config


def files(path: str | Path) -> list[Path]:
    """The JSONL files that the mixture at `path` names, absolute, whether they are there or not."""
    sources = _read_extended(Path(path).resolve(), ()).get("sources") or {}
    return [Path(source["jsonl"]) for source in sources.values() if isinstance(source, dict) and "jsonl" in source]


def quotas(config: FusionConfig, lengths: list[int]) -> list[int]:
    """Pictures that each source gives an epoch.

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


def _read_extended(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """The map of a file over those it extends; paths of sources are made absolute where they are written."""
    if path in chain:
        circle = " -> ".join(p.name for p in (*chain, path))
        raise ConfigError(located(f"`extends` goes in a circle: {circle}", file=path))
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(located("file not found", file=path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(located(f"not YAML: {error}", file=path)) from error
    if not isinstance(raw, dict):
        raise ConfigError(located("not a map", file=path, found=type(raw).__name__))
    for source in (raw.get("sources") or {}).values():
        if isinstance(source, dict) and isinstance(source.get("jsonl"), str):
            source["jsonl"] = str((path.parent / source["jsonl"]).resolve())
    parents = raw.pop("extends", None) or []
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _merge(merged, _read_extended((path.parent / parent).resolve(), (*chain, path)))
    return _merge(merged, raw)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def _reject_unknown(raw: Any, kind: type, path: str | Path, prefix: str) -> None:
    for key in raw if isinstance(raw, Mapping) else ():
        if key not in kind.__struct_fields__:
            problem = f"unknown key{nearest(key, kind.__struct_fields__)}"
            raise ConfigError(located(problem, file=path, field=f"{prefix}{key}"))
