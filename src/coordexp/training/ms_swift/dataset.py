"""Samples as an ms-swift dataset whose rows are indices; a record is read when its row is encoded.

Memory is 8 bytes per row and does not depend on the size of the records. The prompt and the objects of a sample may
change every epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from swift.dataset import DatasetMeta, LazyLLMDataset, register_dataset
from swift.dataset.dataset_meta import BaseDatasetLoader
from swift.pipelines.train import sft

from coordexp.datasets.mixture import check_json_options, load_mixture, single_file_mixture
from coordexp.datasets.samples import Sample, Samples, read_category_table
from coordexp.runtime.errors import ConfigError
from coordexp.training.ms_swift.custom_section import custom_section

TRAIN, VAL = "coordexp_train", "coordexp_val"
ROWS_PER_CHUNK = 65_536
# Shared with loader workers, which may outlive an epoch: the current epoch, and the fraction of the epochs before it.
_epoch = torch.zeros((), dtype=torch.int64).share_memory_()
_progress = torch.zeros((), dtype=torch.float64).share_memory_()


def register() -> None:
    """Register `--dataset coordexp_train --val_dataset coordexp_val`, which read the recipe's JSONL files."""
    sft.LazyLLMDataset = EncodedRows
    for name in (TRAIN, VAL):
        meta = DatasetMeta(dataset_name=name, ms_dataset_id=name, hf_dataset_id=name, loader=_Loader)
        register_dataset(meta, exist_ok=True)


def set_epoch(epoch: int, progress: float = 1.0) -> None:
    """Set the epoch whose samples are drawn, here and in the loader workers (which are idle between epochs).

    progress: fraction of the epochs before it, in [0, 1].
    """
    _epoch.fill_(epoch)
    _progress.fill_(progress)


def current_epoch() -> int:
    """The epoch whose samples are drawn."""
    return int(_epoch)


def epoch_progress() -> float:
    """The fraction of the epochs before the current one, in [0, 1]."""
    return float(_progress)


def sample_of(row: dict[str, Any]) -> Sample:
    """The sample of a row in the current epoch; validation samples are always those of epoch 0."""
    return samples(row["split"]).get(row["index"], current_epoch() if row["split"] == TRAIN else 0)


@functools.cache
def samples(split: str) -> Samples:
    """The samples of a split; ConfigError if the recipe names no file for it."""
    section = custom_section()
    expect = "token" if section.coord_tokens.skip_bbox_norm else "pixel"
    options, table = section.samples, None
    if section.categories:
        table = read_category_table(section.categories)
    if split == TRAIN and section.fusion_config:
        mixture = load_mixture(section.fusion_config)
        check_json_options(mixture, section.answer_format, section.fusion_config)
        return Samples(mixture, expect, options, table)
    path = section.train_jsonl if split == TRAIN else section.val_jsonl
    if not path:
        keys = "train_jsonl or custom.fusion_config" if split == TRAIN else "val_jsonl"
        raise ConfigError(f"custom.{keys} is not set\n  -> name the JSONL file to read")
    if split == VAL:
        order = "sorted" if options.object_ordering == "random" else options.object_ordering
        options = msgspec.structs.replace(options, object_ordering=order, orders_per_sample=1, category_ratio=0.0)
    return Samples(single_file_mixture(path), expect, options, table)


class EncodedRows(LazyLLMDataset):
    """ms-swift's dataset of encoded rows without its list of substitutes, which takes 40 bytes per row.

    Substitutes are not used: an error of a row ends the training, and `SkippingTemplate` skips long samples.
    """

    def __init__(self, dataset: Dataset, encode_func: Callable[..., dict[str, Any]], **_: Any):
        self.dataset, self.encode_func = dataset, encode_func

    def __getitem__(self, index: int | str) -> Any:
        """The encoded row `index`, or the column of that name."""
        if isinstance(index, str):
            return self.dataset[index]
        return self.encode_func(self.dataset[index], return_length=True)


class RowIndex(Dataset):
    """The rows of a split: `index`, the name of the split, and the number of rows.

    The last two are equal in all rows, and their chunks share the memory of the first chunk.
    """

    @classmethod
    def of(cls, split: str, count: int) -> RowIndex:
        """The rows of a split with `count` samples."""
        size = min(count, ROWS_PER_CHUNK)
        constants = {"split": pa.array([split] * size), "count": pa.array(np.full(size, count))}
        sizes = [min(size, count - low) for low in range(0, count, ROWS_PER_CHUNK)]
        columns = {name: pa.chunked_array([values[:n] for n in sizes]) for name, values in constants.items()}
        return cls(InMemoryTable(pa.table({"index": np.arange(count), **columns})), fingerprint=f"{split}-{count}")

    def add_column(self, *_: Any, **__: Any) -> RowIndex:
        """The same rows: ms-swift adds the name of the dataset, which is in `split` already."""
        return self


class _Loader(BaseDatasetLoader):
    """Called by ms-swift with its loading options; the files come from the recipe."""

    def __init__(self, **options: Any):
        self.options = options

    def load(self, dataset_syntax: Any = None, dataset_meta: Any = None, *, use_hf: bool | None = None) -> Dataset:
        split = dataset_meta.dataset_name
        return RowIndex.of(split, len(samples(split)))

    def post_process(self, dataset: Dataset, **options: Any) -> tuple[Dataset, None]:
        """All rows in their own order; the trainer's sampler shuffles."""
        return dataset, None
