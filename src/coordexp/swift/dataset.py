"""Records as an ms-swift data set: a row is a place in a JSONL file, read when the sample is needed.

The rows hold offsets alone, so memory stays flat in the size of the file, and a record becomes a
prompt and an answer only when it is encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from swift.dataset import DatasetMeta, register_dataset
from swift.dataset.dataset_meta import BaseDatasetLoader

from coordexp.contract import Record, check_record
from coordexp.errors import DataError
from coordexp.io import decode_record
from coordexp.swift.settings import custom_section

TRAIN, VAL = "coordexp_train", "coordexp_val"


def register() -> None:
    """Make `--dataset coordexp_train --val_dataset coordexp_val` read the recipe's JSONL files."""
    for name in (TRAIN, VAL):
        meta = DatasetMeta(dataset_name=name, ms_dataset_id=name, hf_dataset_id=name, loader=_Loader)
        register_dataset(meta, exist_ok=True)


def line_offsets(path: str | Path) -> list[int]:
    """Byte offset of every line of a JSONL file that is not blank."""
    offsets, position = [], 0
    with Path(path).open("rb") as handle:
        for line in handle:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return offsets


def read_row(row: dict[str, Any]) -> tuple[Record, Path]:
    """The record that a row points to, checked and in the space that the recipe expects, and its file."""
    path = Path(row["jsonl"])
    with path.open("rb") as handle:
        handle.seek(row["offset"])
        line = handle.readline()
    record = decode_record(line, path, row["line"])
    expected = "token" if custom_section().coord_tokens.skip_bbox_norm else "pixel"
    return check_record(record, expected, f"{path}:{row['line']}"), path


class _Loader(BaseDatasetLoader):
    """Called by ms-swift with its loading options; the recipe says which file."""

    def __init__(self, **options: Any):
        self.options = options

    def load(self, dataset_syntax: Any = None, dataset_meta: Any = None, *, use_hf: bool | None = None) -> Dataset:
        section = custom_section()
        path = section.train_jsonl if dataset_meta.dataset_name == TRAIN else section.val_jsonl
        if not path:
            raise DataError(f"custom.{'train' if dataset_meta.dataset_name == TRAIN else 'val'}_jsonl is not set")
        offsets = line_offsets(path)
        if not offsets:
            raise DataError(f"{path}: no records\n  -> check the conversion's statistics for what was skipped")
        rows = {
            "jsonl": [str(Path(path).resolve())] * len(offsets),
            "offset": offsets,
            "line": range(1, len(offsets) + 1),
        }
        return Dataset.from_dict({key: list(values) for key, values in rows.items()})

    def post_process(self, dataset: Dataset, **options: Any) -> tuple[Dataset, None]:
        """The whole file in its own order; the trainer's sampler shuffles."""
        return dataset, None
