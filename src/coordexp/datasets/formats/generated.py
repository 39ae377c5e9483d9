"""What the generated datasets share: the options of a split override those of the dataset, and no file is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats.base import DatasetFormat, SplitFiles
from coordexp.datasets.source import Source

Dataset = TypeVar("Dataset", bound=msgspec.Struct)


def overrides_of(options: type[msgspec.Struct], name: str) -> type[msgspec.Struct]:
    """A struct called `name` with the fields of `options`, all null by default."""
    return msgspec.defstruct(
        name,
        [(field.name, field.type | None, None) for field in msgspec.structs.fields(options)],
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        module=options.__module__,
        namespace={"__doc__": "Options of one split; null takes the value of the dataset."},
    )


class GeneratedFormat(DatasetFormat[Dataset]):
    """A dataset whose images are generated from `SplitOptions`; the overrides of its splits are in `options.splits`."""

    SplitOptions: ClassVar[type[msgspec.Struct]]

    def files(self, split: str) -> SplitFiles:
        """None: the images are generated."""
        return SplitFiles()

    def split_options(self, split: str) -> Any:
        """The `SplitOptions` of `split`, over those of the dataset."""
        own = {name: getattr(self.options, name) for name in self.SplitOptions.__struct_fields__}
        changed = msgspec.structs.asdict(self.options.splits[split])
        return self.SplitOptions(**own | {name: value for name, value in changed.items() if value is not None})

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """Generate images and annotations of `split`."""
        images, annotations = raw_dir / "images" / split, self.annotation_path(split, raw_dir)
        self.generate(split, images, annotations)
        return self.source(split, annotations, [images])

    def generate(self, split: str, images_dir: Path, annotations: Path) -> None:
        """Write the images to the folder `images_dir` and their annotations to a file, each complete or not at all.

        The same options give the same bytes; a larger `count` only adds images.
        """
        raise NotImplementedError


def add_boxes(writer: AnnotationWriter, image_id: int, boxes: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write the annotations of an image: its (category id, [x1, y1, x2, y2] in pixels), rounded to .01 pixels."""
    for category_id, box in boxes:
        xywh = np.round([*box[:2], *(box[2:] - box[:2])], 2).tolist()
        ids = {"id": writer.annotation_count + 1, "image_id": image_id, "category_id": category_id}
        writer.add_annotation({**ids, "bbox": xywh, "area": round(xywh[2] * xywh[3], 2), "iscrowd": 0})
