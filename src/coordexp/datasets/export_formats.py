"""Writers of the exported formats: each writes the images of an Export to a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import msgspec
import yaml

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.export import Export, ExportedBox, ExportedImage
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import write_json, write_jsonl, write_text

Images = Iterator[ExportedImage]
LOCAL_FILES = "/data/local-files/?d=images/"  # Label Studio's URL of files below its document root


def write_coco(content: Export, images: Images, folder: Path) -> None:
    """`annotations.json` in COCO format; annotations of predictions have a `score`."""
    with AnnotationWriter(folder / "annotations.json") as writer:
        writer.set_categories([{"id": i, "name": name} for i, name in content.categories.items()])
        for image in images:
            facts = {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            writer.add_image(facts)
            for box in image.boxes:
                writer.add_annotation(coco_annotation(box, writer.annotation_count + 1, image.image_id))


def coco_annotation(box: ExportedBox, annotation_id: int, image_id: int | str) -> dict[str, Any]:
    """An annotation in COCO format; that of a prediction has a `score`."""
    x1, y1, x2, y2 = box.xyxy
    return (
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": box.category_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(box.iscrowd),
        }
        | ({"segmentation": [box.polygon]} if box.polygon else {})
        | ({"score": box.score} if box.score is not None else {})
    )


def write_yolo(content: Export, images: Images, folder: Path) -> None:
    """`data.yaml`, and `labels/{image}.txt` with `class cx cy w h` in fractions of the image."""
    index = {category_id: k for k, category_id in enumerate(content.categories)}
    names = dict(enumerate(content.categories.values()))
    data = {"path": ".", "train": "images", "val": "images", "names": names}
    (folder / "images").mkdir(exist_ok=True)
    write_text(folder / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    for image, file in _one_file_each(images, folder, _label_file):
        lines = []
        for box in _without_crowds(content, image):
            x1, y1, x2, y2 = box.xyxy
            values = ((x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height)
            values += ((x2 - x1) / image.width, (y2 - y1) / image.height)
            lines.append(" ".join([str(index[box.category_id]), *(f"{v:.8f}" for v in values)]) + "\n")
        file.write_text("".join(lines), encoding="utf-8")


def write_voc(content: Export, images: Images, folder: Path) -> None:
    """`Annotations/{image}.xml` with one-based pixels, and the list `ImageSets/Main/default.txt`."""
    stems = []
    for image, file in _one_file_each(images, folder, lambda name: f"Annotations/{os.path.splitext(name)[0]}.xml"):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image.file_name
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(value)
        for box in _without_crowds(content, image):
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = _xml_text(box.name)
            ElementTree.SubElement(entry, "difficult").text = "0"
            corners = ElementTree.SubElement(entry, "bndbox")
            x1, y1, x2, y2 = box.xyxy
            for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                ElementTree.SubElement(corners, tag).text = f"{value:.2f}"
        ElementTree.indent(root)
        file.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
        stems.append(os.path.splitext(image.file_name)[0] + "\n")
    write_text(folder / "ImageSets" / "Main" / "default.txt", "".join(stems))


def write_odvg(content: Export, images: Images, folder: Path) -> None:
    """`annotations.jsonl` with detection lines, and `label_map.json`; labels count from 0."""
    index = {category_id: k for k, category_id in enumerate(content.categories)}
    write_json(folder / "label_map.json", {str(k): name for k, name in enumerate(content.categories.values())})

    def lines() -> Iterator[dict]:
        for image in images:
            instances = [
                {"bbox": list(box.xyxy), "label": index[box.category_id], "category": box.name}
                for box in _without_crowds(content, image)
            ]
            size = {"height": image.height, "width": image.width}
            yield {"filename": image.file_name, **size, "detection": {"instances": instances}}

    write_jsonl(folder / "annotations.jsonl", lines())


def write_label_studio(content: Export, images: Images, folder: Path) -> None:
    """`tasks.json` to import, and `label_config.xml` for the settings of the project; boxes are in per cent."""
    key = "predictions" if content.is_predictions else "annotations"
    with (folder / "tasks.json").open("wb") as out:
        for number, image in enumerate(images):
            result = [_label_studio_box(image, box, k) for k, box in enumerate(_without_crowds(content, image))]
            task = {"data": {"image": LOCAL_FILES + image.file_name}, key: [{"result": result}]}
            if content.is_predictions:
                task[key][0] |= {"model_version": "coordexp"}
            out.write((b",\n" if number else b"[\n") + msgspec.json.encode(task))
        out.write(b"\n]\n" if content.counts["images"] else b"[]\n")
    labels = "".join(f"    <Label value={quoteattr(_xml_text(name))}/>\n" for name in content.categories.values())
    view = f'<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n{labels}'
    write_text(folder / "label_config.xml", f"{view}  </RectangleLabels>\n</View>\n")


def _label_studio_box(image: ExportedImage, box: ExportedBox, k: int) -> dict:
    x1, y1, x2, y2 = box.xyxy
    value = {"x": 100 * x1 / image.width, "y": 100 * y1 / image.height, "rotation": 0, "rectanglelabels": [box.name]}
    value |= {"width": 100 * (x2 - x1) / image.width, "height": 100 * (y2 - y1) / image.height}
    names = {"id": f"box{k}", "type": "rectanglelabels", "from_name": "label", "to_name": "image"}
    size = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    return {**names, **size, "value": value} | ({"score": box.score} if box.score is not None else {})


WRITERS: dict[str, Callable[[Export, Images, Path], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "odvg": write_odvg,
    "label_studio": write_label_studio,
}


def _without_crowds(content: Export, image: ExportedImage) -> list[ExportedBox]:
    """The boxes of a format that cannot mark crowds; those left out are counted."""
    kept = [box for box in image.boxes if not box.iscrowd]
    if len(kept) < len(image.boxes):
        content.counts["crowds"] += len(image.boxes) - len(kept)
        content.counts["boxes"] -= len(image.boxes) - len(kept)
    return kept


def _label_file(name: str) -> str:
    """Ultralytics' rule: the last folder `images` of the path becomes `labels`."""
    folder, _, inner = f"/images/{name}".rpartition("/images/")
    return f"{folder}/labels/{os.path.splitext(inner)[0]}.txt".removeprefix("/")


def _one_file_each(images: Images, folder: Path, file_of: Callable[[str], str]) -> Iterator[tuple[ExportedImage, Path]]:
    """Each image and the file of its labels, by `file_of` its name; DataError if two images would share one."""
    for image in images:
        file = folder / file_of(image.file_name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            fix = "rename one of them, or export to coco"
            problem = f"two images have the same name except for the suffix and would share {file.name}"
            raise DataError(located(problem, file=image.file_name, fix=fix))
        yield image, file


def _xml_text(name: str) -> str:
    if any(ord(letter) < 32 for letter in name):
        raise DataError(located("the category name has control characters, which XML cannot hold", found=name))
    return name
