"""What one training example asks and shows: which image, which objects in which order, which categories.

A sample is a function of (seed, epoch, index) alone, so the order of workers, a resumed run and another
machine change nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from coordexp.datasets.categories import descriptions, load
from coordexp.datasets.mixture import Fusion, FusionConfig, FusionSource
from coordexp.datasets.ordering import reading_order
from coordexp.datasets.source import load_source
from coordexp.records import CoordSpace, Object, Record
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json


class SampleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """object_ordering: `sorted` (top to bottom, then left to right) or `random`, drawn anew every epoch.

    orders_per_sample: how many orders of a image an epoch shows (with `random`): a Monte Carlo average
      over permutations.
    category_ratio: share of samples whose prompt names categories; the others ask for every object.
    negatives: most absent categories that such a prompt names.
    """

    object_ordering: Literal["sorted", "random"] = "sorted"
    orders_per_sample: Annotated[int, msgspec.Meta(ge=1)] = 1
    category_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    negatives: Annotated[int, msgspec.Meta(ge=0)] = 5
    seed: int = 17


class CategoryTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Descriptions by category id. `exhaustive`: a category without an object is absent (COCO, not LVIS)."""

    names: dict[int, str]
    exhaustive: bool


class Sample(NamedTuple):
    """`place` is file:line; `style` holds the source's own prompt settings; `categories` None asks for everything."""

    record: Record
    path: Path
    place: str
    style: dict[str, str]
    categories: list[str] | None


class Samples:
    """The samples of a mixture; each source's records are read when they are needed.

    `table` is that of the sources that name none. DataError when a prompt is to name categories and a source has
    no table, or when a record's description is not the one of its category id.
    """

    def __init__(self, config: FusionConfig, expect: CoordSpace, options: SampleOptions, table: CategoryTable | None):
        self.tables = _tables(config, table) if options.category_ratio else [table] * len(config.sources)
        self.fusion, self.options = Fusion(config, expect), options
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(self.fusion.quotas) * self.options.orders_per_sample

    def get(self, index: int, epoch: int) -> Sample:
        """Sample `index` of an epoch (both from 0)."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.fusion.epoch(epoch))
        source, line = self._epoch[1][index // self.options.orders_per_sample].tolist()
        record, path, settings = self.fusion.record(source, line)
        rng = np.random.default_rng([self.options.seed, epoch, index])
        table, place = self.tables[source], f"{path}:{line + 1}"
        categories, objects = None, record.objects
        if table is not None and rng.random() < self.options.category_ratio:
            _check_names(record, table, place)
            categories, objects = self._question(record, table, rng)
        record = msgspec.structs.replace(record, objects=self._ordered(objects, rng))
        return Sample(record, path, place, settings.style, categories)

    def _ordered(self, objects: list[Object], rng: np.random.Generator) -> list[Object]:
        if self.options.object_ordering == "random":
            order = rng.permutation(len(objects))
        else:
            order = reading_order(np.array([obj.norm_box for obj in objects]))
        return [objects[i] for i in order.tolist()]

    def _question(
        self, record: Record, table: CategoryTable, rng: np.random.Generator
    ) -> tuple[list[str] | None, list[Object]]:
        """The categories that the prompt names and the objects that answer it.

        Named are categories with objects and some that are *known* absent: listed as negative, or simply
        without an object where annotations are exhaustive. A category whose annotation is not exhaustive is
        neither, so it is not named, and its objects are not asked for.
        """
        open_ended = set(record.metadata.not_exhaustive_category_ids)
        present = {obj.category_id for obj in record.objects} - open_ended
        listed = set(table.names) if table.exhaustive else set(record.metadata.neg_category_ids)
        absent = sorted((listed & set(table.names)) - present - open_ended)
        absent = [absent[i] for i in rng.permutation(len(absent))[: self.options.negatives].tolist()]
        named = [*sorted(present), *absent]
        if not named:
            return None, record.objects
        asked = [table.names[named[i]] for i in rng.permutation(len(named)).tolist()]
        return asked, [obj for obj in record.objects if obj.category_id in present]


def write_table(manifest: str | Path, out: str | Path, style: Literal["pretty", "raw"]) -> Path:
    """The table of categories of a data set (its Source manifest) as JSON at `out`; returns its path."""
    write_json(out, _table_of(manifest, style))
    return Path(out)


def read_table(path: str | Path) -> CategoryTable:
    """The table that `write_table` wrote; DataError when it is none."""
    try:
        return msgspec.convert(read_json(path), CategoryTable, strict=False)
    except msgspec.ValidationError as error:
        fix = "expected {names: {id: description}, exhaustive: true or false}, as samples.write_table writes it"
        raise DataError(located(f"not a table of categories: {error}", file=path, fix=fix)) from error


def _table_of(manifest: str | Path, style: Literal["pretty", "raw"]) -> CategoryTable:
    source = load_source(manifest)
    annotations = Path(manifest).parent / source.annotations
    return CategoryTable(descriptions(load(annotations), style), exhaustive=not source.federated)


def _tables(config: FusionConfig, table: CategoryTable | None) -> list[CategoryTable]:
    """The table of each source: its own, or else `table`."""
    found = [_own_table(source) or table for source in config.sources.values()]
    for name, one in zip(config.sources, found, strict=True):
        if one is None:
            problem = "prompts that name categories need the table of categories"
            fix = "give it there or as custom.categories, or set custom.category_ratio: 0"
            raise DataError(located(problem, field=f"sources.{name}.categories", fix=fix))
    return found


def _own_table(source: FusionSource) -> CategoryTable | None:
    if source.categories is None:
        return None
    found = read_json(source.categories)
    if isinstance(found, dict) and "annotations" in found:
        return _table_of(source.categories, source.desc)
    return read_table(source.categories)


def _check_names(record: Record, table: CategoryTable, place: str) -> None:
    """DataError when an object's description is not what `table` says for its category id."""
    for i, obj in enumerate(record.objects):
        if table.names.get(obj.category_id) != obj.desc:
            raise DataError(_not_in(table, obj, f"objects[{i}]", place))


def _not_in(table: CategoryTable, obj: Object, field: str, place: str) -> str:
    fix = (
        "give the table that these records were made with: `categories` of their source in the mixture "
        "(and `desc`, for a manifest), or custom.categories"
    )
    name = table.names.get(obj.category_id)
    if name is None:
        facts = {"field": f"{field}.category_id", "expected": f"one of its {len(table.names)} ids"}
        return located("no such id in the table of categories", file=place, found=obj.category_id, fix=fix, **facts)
    problem = f"not the name of category {obj.category_id} in the table of categories"
    return located(problem, file=place, field=f"{field}.desc", expected=name, found=obj.desc, fix=fix)


def one_file(jsonl: str | Path) -> FusionConfig:
    """A mixture of one file, all of it each epoch."""
    return FusionConfig(sources={Path(jsonl).stem: FusionSource(jsonl=str(Path(jsonl).resolve()))})
