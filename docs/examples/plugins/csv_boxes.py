"""Dataset format `csv_boxes`: one line `image,category,x1,y1,x2,y2` per object, in pixels."""

import csv
from typing import Annotated

from msgspec import Meta

from coordexp.datasets.formats import FORMATS, AnnotationWriter, DatasetFormat, FolderOptions, PerSplit, SplitFiles
from coordexp.datasets.images import upright_size


class CsvOptions(FolderOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    boxes: Annotated[PerSplit[str], Meta(description="CSV file of each split")]
    categories: Annotated[tuple[str, ...], Meta(description="category names, in the order of their ids")]


@FORMATS.register("csv_boxes")
class CsvBoxes(DatasetFormat[CsvOptions]):
    Options = CsvOptions

    def files(self, split):
        return SplitFiles(annotations=(self.options.boxes[split],), image_dirs=("images",))

    def provide(self, split, folder, raw_dir):
        with open(folder / self.options.boxes[split], newline="") as lines:
            rows = list(csv.reader(lines))
        image_ids = {name: n for n, name in enumerate(dict.fromkeys(row[0] for row in rows), start=1)}
        category_ids = {name: n for n, name in enumerate(self.options.categories, start=1)}
        with AnnotationWriter(self.annotation_path(split, raw_dir)) as writer:
            writer.set_categories([{"id": n, "name": name} for name, n in category_ids.items()])
            for name, n in image_ids.items():
                width, height = upright_size(folder / "images" / name)
                writer.add_image({"id": n, "file_name": name, "width": width, "height": height})
            for n, (name, category, *corners) in enumerate(rows, start=1):
                x1, y1, x2, y2 = map(float, corners)
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                ids = {"id": n, "image_id": image_ids[name], "category_id": category_ids[category]}
                writer.add_annotation({**ids, **box})
        return self.source(split, writer.path, [folder / "images"])
