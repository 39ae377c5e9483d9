"""Training samples: the image, its objects in their order, and the categories or the phrase that the prompt names.

A sample depends only on (seed, epoch, index), so it is the same in every worker, after a resume, and on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from coordexp.datasets.categories import DescStyle, descriptions, load_categories
from coordexp.datasets.mixture import Mixture, MixtureConfig, MixtureSource
from coordexp.datasets.ordering import AnswerOrder, answer_order
from coordexp.datasets.source import load_source
from coordexp.records import CoordSpace, Object, Record
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json

_PHRASE_STREAM = 2  # random stream, separate from those of the sample's order and of its augmentation


class SampleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the training samples."""

    object_ordering: Annotated[
        AnswerOrder,
        msgspec.Meta(
            description="order of objects: `sorted`: top to bottom, then left to right; `left_to_right`: by x1 first, "
            "then y1; `by_category`: by category id, then as `sorted`; `random`: a new order every epoch"
        ),
    ] = "sorted"
    orders_per_sample: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            description="number of orders in which each image is shown per epoch, with `object_ordering: random`",
        ),
    ] = 1
    category_ratio: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=1,
            description="fraction of samples whose prompt names categories; the other prompts ask for every object",
        ),
    ] = 0.0
    negatives: Annotated[
        int, msgspec.Meta(ge=0, description="maximum number of absent categories in a prompt that names categories")
    ] = 5
    max_named: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        msgspec.Meta(
            description="maximum number of categories in a prompt that names categories, drawn at random from "
            "the present and absent ones; the answer lists only their objects. Use 1 with predict.protocol: "
            "all_categories and chunk: 1"
        ),
    ] = None
    absent_only: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=1,
            description="fraction of the prompts with categories that name only absent ones; the answer is empty",
        ),
    ] = 0.0
    named_categories: Annotated[
        tuple[str, ...] | None,
        msgspec.Meta(description="categories that prompts may name; null: every category"),
    ] = None
    phrase_ratio: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=1,
            description="fraction of samples that ask for the objects of a phrase of the image, each phrase in turn; "
            "the other samples, and images without phrases, ask for every object or for categories",
        ),
    ] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, description="seed of orders and prompts")] = 17


class CategoryTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Descriptions by category id. exhaustive: a category without an object in an image is absent (COCO, not LVIS)."""

    names: dict[int, str]
    exhaustive: bool


class Sample(NamedTuple):
    """A training sample.

    path: file of the record. source_line: `file:line`, for messages. style: settings of prompt and answer that the
    source overrides. categories: those that the prompt names; None asks for every object. phrase: the one whose objects
    are asked for; they are the objects of the record then, with the phrase as their description. source: index of the
    record's file in the mixture.
    """

    record: Record
    path: Path
    source_line: str
    style: dict[str, str]
    categories: list[str] | None
    phrase: str | None = None
    source: int = 0


class Samples:
    """The samples of a mixture. Records are read when they are needed.

    `table` is the category table of the sources that do not name one. DataError if prompts name categories and a source
    has no table, or if the description of an object is not that of its category id.
    """

    def __init__(self, config: MixtureConfig, expect: CoordSpace, options: SampleOptions, table: CategoryTable | None):
        self.tables = [table] * len(config.sources)
        self.mixture, self.options = Mixture(config, expect), options
        if options.category_ratio:
            self.read_tables()
            _require_tables(config, self.tables)
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(self.mixture.quotas) * self.options.orders_per_sample

    def read_tables(self) -> None:
        """Read the category tables that sources name; the others keep the default one."""
        sources = self.mixture.config.sources.values()
        self.tables = [_table_of_source(source) or table for source, table in zip(sources, self.tables, strict=True)]

    def get(self, index: int, epoch: int) -> Sample:
        """Sample `index` of an epoch (both from 0)."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # frees the order of the previous epoch first
            self._epoch = (epoch, self.mixture.epoch(epoch))
        source, line = self.mixture.locate(self._epoch[1][index // self.options.orders_per_sample])
        record, path, settings = self.mixture.record(source, line)
        rng = np.random.default_rng([self.options.seed, epoch, index])
        table, source_line = self.tables[source], f"{path}:{line + 1}"
        categories, objects, phrase = None, record.objects, None
        if self._asks_for_phrase(record, epoch, index):
            repeats = self.options.orders_per_sample
            turn = epoch * repeats + index % repeats
            phrase, objects = _draw_phrase(record, turn, (self.options.seed, source, line))
        elif table is not None and rng.random() < self.options.category_ratio:
            _check_descriptions(record, table, source_line)
            categories, objects = self._name_categories(record, table, rng)
        record = msgspec.structs.replace(record, objects=self._ordered(objects, rng), phrases=[])
        return Sample(record, path, source_line, settings.style, categories, phrase, source)

    def verified_descriptions(self, sample: Sample) -> set[str] | None:
        """Descriptions of which an object that matches no annotation of the sample is certainly wrong; None: all.

        None if the prompt names categories or a phrase: the annotations list all of their objects, and no others are
        asked for. Otherwise the categories whose objects are all annotated, and those that are known to be absent. Of
        these, only categories with annotations are known without a category table, or if it is that of other records.
        """
        if sample.categories or sample.phrase:
            return None
        record, table = sample.record, self.tables[sample.source]
        incomplete = set(record.metadata.not_exhaustive_category_ids)
        found = {obj.desc for obj in record.objects if obj.category_id not in incomplete}
        if table is None or any(table.names.get(obj.category_id) != obj.desc for obj in record.objects):
            return found
        return found | {table.names[i] for i in _known_categories(record, table).absent}

    def _asks_for_phrase(self, record: Record, epoch: int, index: int) -> bool:
        """Whether a sample asks for a phrase; its own random stream leaves those of other samples unchanged."""
        if not record.phrases or not self.options.phrase_ratio:
            return False
        drawn = np.random.default_rng([self.options.seed, epoch, index, _PHRASE_STREAM]).random()
        return bool(drawn < self.options.phrase_ratio)

    def _ordered(self, objects: list[Object], rng: np.random.Generator) -> list[Object]:
        if self.options.object_ordering == "random":
            return [objects[i] for i in rng.permutation(len(objects)).tolist()]
        return answer_order(objects, self.options.object_ordering)

    def _name_categories(
        self, record: Record, table: CategoryTable, rng: np.random.Generator
    ) -> tuple[list[str] | None, list[Object]]:
        """The categories that the prompt names (None: every object is asked for), and the objects of the answer.

        The prompt names the categories that have objects and some that are *known* to be absent: those listed as
        negative or, with exhaustive annotations, all without an object. A category that is not exhaustively annotated
        is not named, and its objects are not part of the answer. Of all these, at most `max_named` are named. With
        probability `absent_only`, no present category is named, unless no category is known to be absent.
        """
        present, absent = _known_categories(record, table)
        absent = [absent[i] for i in rng.permutation(len(absent)).tolist()]
        allowed = self.options.named_categories
        present_named, absent_named = (
            [i for i in ids if allowed is None or table.names[i] in allowed] for ids in (sorted(present), absent)
        )
        absent_named = absent_named[: self.options.negatives]
        named = present_named + absent_named
        if self.options.absent_only and rng.random() < self.options.absent_only and absent_named:
            named = absent_named
        if not named:
            return None, record.objects
        chosen = [named[i] for i in rng.permutation(len(named))[: self.options.max_named].tolist()]
        listed = present.intersection(chosen)
        return [table.names[i] for i in chosen], [obj for obj in record.objects if obj.category_id in listed]


class _Categories(NamedTuple):
    """Ids of the categories of which all objects in an image are annotated, and of those known to be absent, sorted."""

    present: set[int]
    absent: list[int]


def _known_categories(record: Record, table: CategoryTable) -> _Categories:
    not_exhaustive = set(record.metadata.not_exhaustive_category_ids)
    present = {obj.category_id for obj in record.objects} - not_exhaustive
    listed = set(table.names) if table.exhaustive else set(record.metadata.neg_category_ids)
    return _Categories(present, sorted((listed & set(table.names)) - present - not_exhaustive))


def _draw_phrase(record: Record, turn: int, seed: tuple[int, int, int]) -> tuple[str, list[Object]]:
    """A phrase of the record, and its objects, named by it; each phrase has its turn before any is repeated."""
    rounds, position = divmod(turn, len(record.phrases))
    order = np.random.default_rng([*seed, rounds, _PHRASE_STREAM]).permutation(len(record.phrases))
    phrase = record.phrases[int(order[position])]
    return phrase.text, [msgspec.structs.replace(record.objects[i], desc=phrase.text) for i in phrase.objects]


def write_category_table(manifest: str | Path, out: str | Path, style: DescStyle) -> Path:
    """Write the category table of a dataset, given by its manifest, as JSON to `out`; returns `out`."""
    write_json(out, _table_of_manifest(manifest, style))
    return Path(out)


def read_category_table(path: str | Path) -> CategoryTable:
    """Read a table that `write_category_table` wrote; DataError if it is not one."""
    try:
        return msgspec.convert(read_json(path), CategoryTable, strict=False)
    except msgspec.ValidationError as error:
        fix = "write the file with coordexp.datasets.samples.write_category_table"
        raise DataError(located(f"not a category table: {error}", file=path, fix=fix)) from error


def _table_of_manifest(manifest: str | Path, style: DescStyle) -> CategoryTable:
    source = load_source(manifest)
    annotations = Path(manifest).parent / source.annotations
    return CategoryTable(descriptions(load_categories(annotations), style), exhaustive=not source.federated)


def _require_tables(config: MixtureConfig, tables: list[CategoryTable | None]) -> None:
    """DataError if a source has no category table."""
    for name, table in zip(config.sources, tables, strict=True):
        if table is None:
            problem = "prompts that name categories need a category table"
            fix = "set it here or as custom.categories, or set custom.category_ratio: 0"
            raise DataError(located(problem, field=f"sources.{name}.categories", fix=fix))


def _table_of_source(source: MixtureSource) -> CategoryTable | None:
    if source.categories is None:
        return None
    content = read_json(source.categories)
    if isinstance(content, dict) and "annotations" in content:
        return _table_of_manifest(source.categories, source.desc)
    return read_category_table(source.categories)


def _check_descriptions(record: Record, table: CategoryTable, source_line: str) -> None:
    """DataError if the description of an object is not that of its category id in `table`."""
    fix = (
        "use the table that these records were converted with: `categories` of their source in the mixture "
        "(and `desc`, for a manifest), or custom.categories"
    )
    for i, obj in enumerate(record.objects):
        name, where = table.names.get(obj.category_id), f"objects[{i}]"
        if name is None:
            facts = {"expected": f"one of its {len(table.names)} ids", "found": obj.category_id, "fix": fix}
            problem = "the category table lacks this id"
            raise DataError(located(problem, file=source_line, field=f"{where}.category_id", **facts))
        if name != obj.desc:
            problem = f"differs from the name of category {obj.category_id} in the category table"
            facts = {"expected": name, "found": obj.desc, "fix": fix}
            raise DataError(located(problem, file=source_line, field=f"{where}.desc", **facts))
