"""Time and peak memory of YOLO, VOC and COCO folders to records, next to supervision converting them to COCO.

python benchmarks/data_formats.py make FOLDER 20000
python benchmarks/data_formats.py ours FOLDER yolo        # each in a process of its own: peak memory
python benchmarks/data_formats.py supervision FOLDER yolo  # in an environment that has supervision
"""

import json
import random
import resource
import shutil
import sys
import time
from pathlib import Path

SIZE = (640, 480)
NAMES = ["cat", "dog", "bird"]


def make(folder: Path, count: int) -> None:
    """Write the same images and boxes in three formats; images are links to one of 50 files."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(1)
    for n in range(50):
        (folder / "pool").mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"pool/{n}.jpg", quality=90)
    for path in ("yolo/images/train", "yolo/labels/train", "voc/Annotations", "voc/JPEGImages", "coco/train"):
        (folder / path).mkdir(parents=True)
    (folder / "yolo/data.yaml").write_text(f"train: images/train\nnames: {json.dumps(NAMES)}\n")
    images, annotations, draw = [], [], random.Random(1)
    for n in range(count):
        name = f"{n:06d}"
        for path in ("yolo/images/train", "voc/JPEGImages", "coco/train"):
            (folder / path / f"{name}.jpg").hardlink_to(folder / f"pool/{n % 50}.jpg")
        images.append({"id": n + 1, "file_name": f"{name}.jpg", "width": 640, "height": 480})
        lines, objects = [], []
        for _ in range(8):
            w, h, c = draw.randint(8, 200), draw.randint(8, 200), draw.randrange(3)
            x, y = draw.randint(1, 639 - w), draw.randint(1, 479 - h)
            box = {"id": len(annotations) + 1, "image_id": n + 1, "category_id": c + 1, "bbox": [x, y, w, h]}
            annotations.append({**box, "area": w * h, "iscrowd": 0})
            lines.append(f"{c} {(x + w / 2) / 640} {(y + h / 2) / 480} {w / 640} {h / 480}\n")
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            objects.append(
                f"<object><name>{NAMES[c]}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>\n"
            )
        (folder / f"yolo/labels/train/{name}.txt").write_text("".join(lines))
        size = "<size><width>640</width><height>480</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}\n{''.join(objects)}</annotation>\n"
        (folder / f"voc/Annotations/{name}.xml").write_text(text)
    categories = [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / "coco/train.json").write_text(json.dumps(content))


def ours(folder: Path, name: str) -> float:
    from coordexp.datasets.convert import ConvertOptions, convert
    from coordexp.datasets.download import provide

    entries = {
        "yolo": {"splits": {"train": "train"}},
        "voc": {"splits": {"train": "Annotations"}, "categories": NAMES, "one_based": False},
        "coco": {"annotations": {"train": "train.json"}, "image_dirs": {"train": ["train"]}},
    }
    out = folder / f"ours_{name}"
    begun = time.perf_counter()
    entry = {"format": name, "root": str(folder / name), **entries[name]}
    provide(name, entry, "train", out / "raw", out / "train.source.json")
    print(json.dumps({"annotations only, seconds": time.perf_counter() - begun}))
    options = ConvertOptions(resize="shrink")
    convert(out / "train.source.json", out / "train.jsonl", out / "images", options, 768, out / "stats.json")
    return time.perf_counter() - begun


def by_supervision(folder: Path, name: str) -> float:
    import supervision as sv

    out = folder / f"supervision_{name}"
    begun = time.perf_counter()
    root = folder / name
    if name == "yolo":
        labels, data = str(root / "labels/train"), str(root / "data.yaml")
        dataset = sv.DetectionDataset.from_yolo(str(root / "images/train"), labels, data)
    elif name == "voc":
        dataset = sv.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    else:
        dataset = sv.DetectionDataset.from_coco(str(root / "train"), str(root / "train.json"))
    print(json.dumps({"annotations only, seconds": time.perf_counter() - begun}))
    dataset.as_coco(str(out / "images"), str(out / "train.json"))
    return time.perf_counter() - begun


if __name__ == "__main__":
    command, folder, last = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if command == "make":
        make(folder, int(last))
    else:
        cpu = time.process_time()
        seconds = {"ours": ours, "supervision": by_supervision}[command](folder, last)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        times = {"seconds": round(seconds, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}  # with the imports
        print(json.dumps({"by": command, "format": last, **times, "peak_mb": round(peak)}))
        shutil.rmtree(folder / f"{command}_{last}")
