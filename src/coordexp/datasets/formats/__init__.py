"""Dataset formats: each turns the files of a split into one annotation file in COCO format."""

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats import coco, lvis, shapes  # noqa: F401 -- registers them
from coordexp.datasets.formats.base import (
    FORMATS,
    DatasetFormat,
    FolderOptions,
    PerSplit,
    SplitFiles,
    check_split,
    open_format,
    per_split_options,
)

__all__ = [
    "FORMATS",
    "AnnotationWriter",
    "DatasetFormat",
    "FolderOptions",
    "PerSplit",
    "SplitFiles",
    "check_split",
    "open_format",
    "per_split_options",
]
