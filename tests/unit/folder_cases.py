"""Small valid datasets in the formats of this package, each with the same four boxes in the same images."""

import json
from pathlib import Path

from PIL import Image

from coordexp.datasets.download import provide

SIZES = {"a.jpg": (100, 50), "b c.JPG": (40, 80), "empty.png": (32, 32)}
YOLO_LABELS = {"a.txt": "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.1 0.2\n", "b c.txt": "1 0 0 0.5 0 0.5 0.25\n0 .5 .5 1 1\n"}


def draw(folder: Path, sizes=SIZES) -> None:
    """Write an image of each size."""
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 30)).save(path)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def yolo(root: Path, labels=YOLO_LABELS, data="train: images/train\nnames: [cat, dog]\n") -> dict:
    """Folders `images/train` and `labels/train`; returns the entry of the configuration."""
    draw(root / "images/train")
    for name, text in labels.items():
        write(root / "labels/train" / name, text)
    write(root / "data.yaml", data)
    return {"format": "yolo", "splits": {"train": "train"}}


def voc_xml(name: str, size: tuple[int, int], objects: str = "") -> str:
    width, height = size
    size_text = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{name}</filename>\n{size_text}\n{objects}</annotation>\n"


def voc_object(name: str, corners, difficult=0) -> str:
    elements = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>\n<bndbox>{elements}</bndbox></object>\n"


def voc(root: Path) -> dict:
    """The folders of PASCAL VOC, one-based; returns the entry of the configuration."""
    draw(root / "JPEGImages")
    first = voc_object("cat", (41, 16, 60, 35)) + voc_object("dog", (6, 6, 15, 15))
    second = voc_object("dog", (1, 1, 20, 20), difficult=1) + voc_object("cat", (1, 1, 40, 80))
    write(root / "Annotations/a.xml", voc_xml("a.jpg", SIZES["a.jpg"], first))
    write(root / "Annotations/b c.xml", voc_xml("b c.JPG", SIZES["b c.JPG"], second))
    write(root / "Annotations/empty.xml", voc_xml("empty.png", SIZES["empty.png"]))
    write(root / "ImageSets/Main/train.txt", "a\nb c\nempty\n")
    splits = {"train": "ImageSets/Main/train.txt"}
    return {"format": "voc", "splits": splits, "categories": ["cat", "dog"], "one_based": True}


CSV_ROWS = """image,category,x1,y1,x2,y2,group
a.jpg,cat,40,15,60,35,0
a.jpg,dog,5,5,15,15,0
b c.JPG,dog,0,0,20,20,1
b c.JPG,cat,0,0,40,80,
empty.png,,,,,,
"""


def csv(root: Path, rows: str | bytes = CSV_ROWS) -> dict:
    """One CSV file with corners in pixels; returns the entry of the configuration."""
    draw(root / "images")
    write(root / "train.csv", rows)
    columns = {"box": ["x1", "y1", "x2", "y2"], "crowd": "group"}
    entry = {"format": "csv", "boxes": {"train": "train.csv"}, "image_dirs": {"train": ["images"]}}
    return {**entry, "columns": columns, "box": "xyxy", "units": "pixel", "categories": ["cat", "dog"]}


def provided(entry: dict, root: Path, on_bad: str = "error") -> dict:
    """The annotation file of the split `train` of the dataset in `root`."""
    raw = root.parent / f"{root.name}.raw"
    source = provide("own", {**entry, "root": str(root), "on_bad": on_bad}, "train", raw, raw / "train.source.json")
    return json.loads((raw / source.annotations).read_text())


def boxes(content: dict) -> list[tuple]:
    """(file name, category name, box rounded to a hundredth, iscrowd) of each annotation."""
    names = {image["id"]: image["file_name"].rpartition("/")[2] for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    return [
        (names[a["image_id"]], categories[a["category_id"]], [round(v, 2) for v in a["bbox"]], a["iscrowd"])
        for a in content["annotations"]
    ]


def skipped(content: dict, root: Path) -> list[tuple]:
    """(kind, reason, file relative to `root`, line) of each item that was left out."""
    found = content.get("skipped", [])
    return [(s["kind"], s["reason"], s["file"].replace(f"{root}/", ""), s.get("line")) for s in found]
