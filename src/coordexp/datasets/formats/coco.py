"""COCO JSON: the user's annotation file is read unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from coordexp.datasets.formats.base import FORMATS, DatasetFormat, FolderOptions, PerSplit, SplitFiles
from coordexp.datasets.source import Source


class CocoOptions(FolderOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in COCO or LVIS format; paths are relative to its folder."""

    annotations: Annotated[PerSplit[str], msgspec.Meta(description="annotation file of each split")]
    image_dirs: Annotated[PerSplit[list[str]], msgspec.Meta(description="folders of images of each split")]


@FORMATS.register("coco")
class CocoFormat(DatasetFormat[CocoOptions]):
    """COCO JSON with exhaustive annotations. Nothing is copied: the Source names the user's own file."""

    Options = CocoOptions

    def files(self, split: str) -> SplitFiles:
        """The annotation file and the folders of images of `split`."""
        return SplitFiles((self.options.annotations[split],), tuple(self.options.image_dirs[split]))

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The Source that names the user's own file."""
        (annotations,), image_dirs = self.files(split)
        return self.source(split, folder / annotations, [folder / name for name in image_dirs])
