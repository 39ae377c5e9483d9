"""What one training example asks and shows: which picture, which objects in which order, which categories.

A sample is a function of (seed, epoch, index) alone, so the order of workers, a resumed run and another
machine change nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from coordexp.contract import CoordSpace, Object, Record
from coordexp.data.categories import descriptions, load
from coordexp.data.convert import load_source
from coordexp.data.fusion import Fusion, FusionConfig, FusionSource
from coordexp.data.order import reading_order
from coordexp.errors import DataError, located
from coordexp.io import write_json


class SampleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """object_ordering: `sorted` (top to bottom, then left to right) or `random`, drawn anew every epoch.

    orders_per_sample: how many orders of a picture an epoch shows (with `random`): a Monte Carlo average
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
    """The samples of a mixture; each source's records are read when they are needed."""

    def __init__(self, config: FusionConfig, expect: CoordSpace, options: SampleOptions, table: CategoryTable | None):
        if options.category_ratio and table is None:
            fix = "give custom.categories, or set custom.category_ratio: 0"
            raise DataError(located("prompts that name categories need the table of categories", fix=fix))
        self.fusion, self.options, self.table = Fusion(config, expect), options, table
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
        categories, objects = self._question(record, rng)
        record = msgspec.structs.replace(record, objects=self._ordered(objects, rng))
        return Sample(record, path, f"{path}:{line + 1}", settings.style, categories)

    def _ordered(self, objects: list[Object], rng: np.random.Generator) -> list[Object]:
        if self.options.object_ordering == "random":
            order = rng.permutation(len(objects))
        else:
            order = reading_order(np.array([obj.norm_box for obj in objects]))
        return [objects[i] for i in order.tolist()]

    def _question(self, record: Record, rng: np.random.Generator) -> tuple[list[str] | None, list[Object]]:
        """The categories that the prompt names and the objects that answer it.

        Named are categories with objects and some that are *known* absent: listed as negative, or simply
        without an object where annotations are exhaustive. A category whose annotation is not exhaustive is
        neither, so it is not named, and its objects are not asked for.
        """
        if self.table is None or rng.random() >= self.options.category_ratio:
            return None, record.objects
        open_ended = set(record.metadata.not_exhaustive_category_ids)
        present = {obj.category_id for obj in record.objects} - open_ended
        listed = set(self.table.names) if self.table.exhaustive else set(record.metadata.neg_category_ids)
        absent = sorted((listed & set(self.table.names)) - present - open_ended)
        absent = [absent[i] for i in rng.permutation(len(absent))[: self.options.negatives].tolist()]
        named = [*sorted(present), *absent]
        if not named:
            return None, record.objects
        asked = [self.table.names[named[i]] for i in rng.permutation(len(named)).tolist()]
        return asked, [obj for obj in record.objects if obj.category_id in present]


def write_table(manifest: str | Path, out: str | Path, style: Literal["pretty", "raw"]) -> Path:
    """The table of categories of a data set (its Source manifest) as JSON at `out`; returns its path."""
    source = load_source(manifest)
    annotations = Path(manifest).parent / source.annotations
    write_json(out, CategoryTable(descriptions(load(annotations), style), exhaustive=source.layout == "coco"))
    return Path(out)


def one_file(jsonl: str | Path) -> FusionConfig:
    """A mixture of one file, all of it each epoch."""
    return FusionConfig(sources={Path(jsonl).stem: FusionSource(jsonl=str(Path(jsonl).resolve()))})
