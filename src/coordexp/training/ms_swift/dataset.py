"""Samples as an ms-swift dataset whose rows are indices; a record is read when its row is encoded.

Memory is constant in the size of the files, and the prompt and the objects of a sample may change every epoch.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import torch
from datasets import Dataset
from swift.dataset import DatasetMeta, register_dataset
from swift.dataset.dataset_meta import BaseDatasetLoader

from coordexp.datasets.mixture import load_mixture, single_file_mixture
from coordexp.datasets.samples import Sample, Samples, read_category_table
from coordexp.runtime.errors import ConfigError
from coordexp.training.ms_swift.custom_section import custom_section

TRAIN, VAL = "coordexp_train", "coordexp_val"
_epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with loader workers, which may outlive an epoch


def register() -> None:
    """Register `--dataset coordexp_train --val_dataset coordexp_val`, which read the recipe's JSONL files."""
    for name in (TRAIN, VAL):
        meta = DatasetMeta(dataset_name=name, ms_dataset_id=name, hf_dataset_id=name, loader=_Loader)
        register_dataset(meta, exist_ok=True)


def set_epoch(epoch: int) -> None:
    """Set the epoch whose samples are drawn, here and in the loader workers (which are idle between epochs)."""
    _epoch.fill_(epoch)


def current_epoch() -> int:
    """The epoch whose samples are drawn."""
    return int(_epoch)


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
        return Samples(load_mixture(section.fusion_config), expect, options, table)
    path = section.train_jsonl if split == TRAIN else section.val_jsonl
    if not path:
        keys = "train_jsonl or custom.fusion_config" if split == TRAIN else "val_jsonl"
        raise ConfigError(f"custom.{keys} is not set\n  -> name the JSONL file to read")
    if split == VAL:
        order = "sorted" if options.object_ordering == "random" else options.object_ordering
        options = msgspec.structs.replace(options, object_ordering=order, orders_per_sample=1, category_ratio=0.0)
    return Samples(single_file_mixture(path), expect, options, table)


class _Loader(BaseDatasetLoader):
    """Called by ms-swift with its loading options; the files come from the recipe."""

    def __init__(self, **options: Any):
        self.options = options

    def load(self, dataset_syntax: Any = None, dataset_meta: Any = None, *, use_hf: bool | None = None) -> Dataset:
        split = dataset_meta.dataset_name
        count = len(samples(split))
        return Dataset.from_dict({"index": list(range(count)), "split": [split] * count, "count": [count] * count})

    def post_process(self, dataset: Dataset, **options: Any) -> tuple[Dataset, None]:
        """All rows in their own order; the trainer's sampler shuffles."""
        return dataset, None
