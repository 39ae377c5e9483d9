"""Mixtures: several JSONL files as one training set (`custom.fusion_config`).

```yaml
extends: base.yaml        # optional; one file or a list, relative to this one
seed: 17
epoch_size: null          # images per epoch, shared in proportion to `ratio`; null: ratio x length of each source
sources:
  lvis: {jsonl: lvis/train.coord.jsonl, ratio: 1.0}
  mine: {jsonl: mine/train.coord.jsonl, ratio: 0.5, seed: 3, user_prompt: "Find every part.", categories: mine.json}
```
The images of a source are drawn in shuffled rounds: none is repeated before all others have been drawn, even across
epochs.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from coordexp.answers.render import FieldOrder, JsonFormat
from coordexp.datasets.categories import DescStyle
from coordexp.records import CoordSpace, Record, check_record, decode_record
from coordexp.runtime.config_io import convert, read_extended
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.io import NOT_JSON

PATHS = ("jsonl", "categories")  # options of a source that name a file


class MixtureSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a mixture. Settings of the prompt and the answer that are null are the recipe's."""

    jsonl: Annotated[str, msgspec.Meta(description="JSONL file of records, relative to the mixture file")]
    ratio: Annotated[
        float,
        msgspec.Meta(
            description="fraction of the file used per epoch (2: every image twice), or its weight if the mixture has "
            "an `epoch_size`"
        ),
    ] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, description="seed of this source's shuffling")] = 0
    user_prompt: Annotated[str | None, msgspec.Meta(description="prompt that asks for every object")] = None
    category_prompt: Annotated[str | None, msgspec.Meta(description="prompt that names categories")] = None
    phrase_prompt: Annotated[str | None, msgspec.Meta(description="prompt that asks for the objects of a phrase")] = (
        None
    )
    object_field_order: Annotated[
        FieldOrder | None,
        msgspec.Meta(description="order of an object's fields in the answer"),
    ] = None
    json_format: Annotated[JsonFormat | None, msgspec.Meta(description="spacing of the answer's JSON")] = None
    categories: Annotated[
        str | None,
        msgspec.Meta(
            description="table of this source's categories, relative to the mixture file: a manifest that rule "
            "download wrote, or a file written by `samples.write_category_table`. null: the run's own table"
        ),
    ] = None
    desc: Annotated[DescStyle, msgspec.Meta(description="form of the category names if `categories` is a manifest")] = (
        "pretty"
    )

    @property
    def style(self) -> dict[str, str]:
        """The settings of prompt and answer that this source overrides, by their names in PromptStyle."""
        names = ("user_prompt", "category_prompt", "phrase_prompt", "object_field_order", "json_format")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class MixtureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mixture: `sources` by name, in the order of the file, with absolute paths."""

    sources: Annotated[dict[str, MixtureSource], msgspec.Meta(description="the files of the mixture, by name")]
    seed: Annotated[int, msgspec.Meta(ge=0, description="seed of the mixture's shuffling")] = 17
    epoch_size: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        msgspec.Meta(
            description="images per epoch, shared among the sources in proportion to `ratio`; null: ratio x length of "
            "each source"
        ),
    ] = None


class Mixture:
    """The sources of a mixture: the offset of each record, and the records of each epoch.

    A record's position is its number among those of all sources, in their order. Memory is 8 bytes per record, and 4
    per record of an epoch (8 from 2**31 records on). DataError with file and line if a source is empty, or if a record
    is not in space `expect`.
    """

    def __init__(self, config: MixtureConfig, expect: CoordSpace):
        self.config, self.expect = config, expect
        self.names = list(config.sources)
        self.offsets = [_line_offsets(source.jsonl, expect) for source in config.sources.values()]
        self.starts = np.cumsum([0, *map(len, self.offsets)])
        self.quotas = quotas(config, [len(o) for o in self.offsets])

    def epoch(self, number: int) -> np.ndarray:
        """Shuffled positions of the records of epoch `number` (from 0), int [N]; the same on every call and machine."""
        positions = np.empty(sum(self.quotas), dtype=_integer(self.starts[-1]))
        end = 0
        for i, (source, quota) in enumerate(zip(self.config.sources.values(), self.quotas, strict=True)):
            own, end = positions[end : end + quota], end + quota
            _draw_rounds(own, len(self.offsets[i]), number * quota, (self.config.seed, source.seed, i))
            own += self.starts[i].astype(own.dtype)
        np.random.default_rng([self.config.seed, number]).shuffle(positions)
        return positions

    def locate(self, position: int) -> tuple[int, int]:
        """(source, line from 0 among its records) of a position."""
        source = int(np.searchsorted(self.starts, position, side="right")) - 1
        return source, int(position - self.starts[source])

    def record(self, source: int, line: int) -> tuple[Record, Path, MixtureSource]:
        """The record on a line (from 0) of a source, with the file and the source's settings."""
        settings = self.config.sources[self.names[source]]
        path = Path(settings.jsonl)
        with path.open("rb") as handle:
            handle.seek(int(self.offsets[source][line]))
            record = decode_record(handle.readline(), path, line + 1)
        return check_record(record, self.expect, f"{path}:{line + 1}"), path, settings


def load_mixture(path: str | Path) -> MixtureConfig:
    """Load a mixture file (YAML or JSON) and the files that it `extends`; ConfigError if it is invalid.

    A source that is null removes an inherited one.
    """
    raw = read_extended(path, _absolute)
    config = convert(raw | {"sources": _sources(raw, path)}, MixtureConfig, path)
    if not config.sources:
        fix = "add at least one JSONL file"
        raise ConfigError(located("the mixture has no sources", file=path, field="sources", fix=fix))
    for name, source in config.sources.items():
        if not (np.isfinite(source.ratio) and source.ratio > 0):
            fix = "set the source to null to remove it"
            facts = {"field": f"sources.{name}.ratio", "expected": "a positive number", "found": source.ratio}
            raise ConfigError(located("invalid ratio", file=path, fix=fix, **facts))
        for key in PATHS:
            file = getattr(source, key)
            if file is not None and not Path(file).is_file():
                raise ConfigError(located("file not found", file=path, field=f"sources.{name}.{key}", found=file))
    return config


def check_json_options(config: MixtureConfig, answer_format: str, path: str | Path) -> None:
    """ConfigError if a source of the mixture in `path` sets an option of JSON answers but answers are not JSON."""
    for name, source in config.sources.items():
        for key in ("object_field_order", "json_format"):
            if getattr(source, key) is not None and answer_format != "json":
                fix = "remove it, or set custom.answer_format: json in the recipe"
                problem = f"has no effect in answers of the format {answer_format}"
                raise ConfigError(located(problem, file=path, field=f"sources.{name}.{key}", fix=fix))


def mixture_files(path: str | Path, key: Literal["jsonl", "categories"] = "jsonl") -> list[Path]:
    """Absolute paths of the files that the sources of a mixture name under `key`; they need not exist."""
    sources = _sources(read_extended(path, _absolute), path).values()
    return [Path(source[key]) for source in sources if isinstance(source, dict) and source.get(key) is not None]


def _sources(raw: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The sources in a map that has not been validated, without those that are null."""
    sources = raw.get("sources") or {}
    if not isinstance(sources, dict):
        problem, found = "expected a map of sources by name", type(sources).__name__
        raise ConfigError(located(problem, file=path, field="sources", found=found))
    return {name: source for name, source in sources.items() if source is not None}


def _absolute(raw: dict[str, Any], path: Path) -> None:
    for source in _sources(raw, path).values():
        for key in PATHS:
            if isinstance(source, dict) and isinstance(source.get(key), str):
                source[key] = str((path.parent / source[key]).resolve())


def single_file_mixture(jsonl: str | Path) -> MixtureConfig:
    """A mixture of one file, all of it in each epoch."""
    return MixtureConfig(sources={Path(jsonl).stem: MixtureSource(jsonl=str(Path(jsonl).resolve()))})


def quotas(config: MixtureConfig, lengths: list[int]) -> list[int]:
    """Images per epoch of each source.

    Without `epoch_size`: ratio x length, rounded, at least one. With it: `epoch_size` divided in proportion to the
    ratios, by the method of largest remainders.
    """
    ratios = np.array([source.ratio for source in config.sources.values()])
    if config.epoch_size is None:
        return [max(1, round(ratio * n)) for ratio, n in zip(ratios.tolist(), lengths, strict=True)]
    exact = config.epoch_size * ratios / ratios.sum()
    counts = np.floor(exact).astype(int)
    largest_remainders = np.argsort(counts - exact, kind="stable")[: config.epoch_size - counts.sum()]
    counts[largest_remainders] += 1
    return counts.tolist()


def _integer(limit: int) -> type[np.signedinteger]:
    """The smallest type, of 4 or 8 bytes, for integers up to `limit`."""
    return np.int32 if limit < 2**31 else np.int64


def _draw_rounds(out: np.ndarray, length: int, start: int, seed: tuple[int, ...]) -> None:
    """Fill `out` with line numbers below `length`, from position `start` of an endless sequence of shuffled rounds."""
    filled = 0
    while filled < len(out):
        number, skipped = divmod(start + filled, length)
        count = min(length - skipped, len(out) - filled)
        drawn, filled = out[filled : filled + count], filled + count
        lines = drawn if count == length else np.empty(length, dtype=out.dtype)  # a whole round is shuffled in place
        lines[:] = np.arange(length, dtype=out.dtype)
        np.random.default_rng([*seed, number]).shuffle(lines)
        if lines is not drawn:
            drawn[:] = lines[skipped : skipped + count]


class _RecordHead(msgspec.Struct):
    coord_space: str


_decode_head = msgspec.json.Decoder(_RecordHead).decode


def _line_offsets(path: str, expect: CoordSpace) -> np.ndarray:
    offsets, position = array("q"), 0  # a list would take 40 bytes per record
    with Path(path).open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                _check_space(line, expect, path, number)
                offsets.append(position)
            position += len(line)
    if not offsets:
        fix = "remove the source, or check the statistics of its conversion"
        raise DataError(located("no records", file=path, fix=fix))
    return np.frombuffer(offsets, dtype=np.int64)


def _check_space(line: bytes, expect: CoordSpace, path: str, number: int) -> None:
    try:
        found = _decode_head(line).coord_space
    except NOT_JSON as error:
        raise DataError(located(f"not a record: {error}", file=path, line=number)) from error
    if found != expect:
        fix = f"use a file in {expect} space; units are never converted implicitly"
        facts = {"field": "coord_space", "expected": expect, "found": found, "fix": fix}
        raise DataError(located("wrong coordinate space", file=path, line=number, **facts))
