"""Dataset formats: each turns the files of a split into one annotation file in COCO format.

To add a format, write a module with a registered `DatasetFormat` and import it below, or register one in a plug-in file
of your own (`coordexp.runtime.plugins`).
"""

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats.base import (
    FORMATS,
    ConvertedOptions,
    DatasetFormat,
    DerivedSplit,
    FolderOptions,
    PerSplit,
    Proposal,
    SplitFiles,
    check_split,
    derived_splits,
    known_splits,
    open_format,
    original_split,
    per_split_options,
)

__all__ = [
    "FORMATS",
    "AnnotationWriter",
    "ConvertedOptions",
    "DatasetFormat",
    "DerivedSplit",
    "FolderOptions",
    "PerSplit",
    "Proposal",
    "SplitFiles",
    "check_split",
    "derived_splits",
    "known_splits",
    "open_format",
    "original_split",
    "per_split_options",
]

# Registers the formats; last, so that their modules can import the names above from this package, like a plug-in.
from coordexp.datasets.formats import (  # noqa: F401
    cells,
    coco,
    csv_rows,
    hf,
    imagefolder,
    lvis,
    ms_swift,
    odvg,
    qwen,
    refcoco,
    shapes,
    shapes_refer,
    shelf,
    voc,
    yolo,
)
