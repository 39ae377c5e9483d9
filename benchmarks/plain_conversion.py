"""The obvious program for the annotation side: json.load, group, one annotation after the other, json.dumps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from coordexp.geometry.resize import grid_size

SIZES = {"small": 32**2, "medium": 96**2, "large": math.inf}  # areas below these, source pixels squared


def convert(manifest: Path, out: Path, blocks: int) -> None:
    """Records to `out`/train.jsonl and counts to `out`/stats.json, as the stage writes them for a sound LVIS file."""
    out.mkdir(parents=True)
    source = json.loads(manifest.read_text())
    with (manifest.parent / source["annotations"]).open() as handle:
        data = json.load(handle)
    names = {c["id"]: " ".join(c["name"].replace("_", " ").split()) for c in data["categories"]}
    grouped = defaultdict(list)
    for annotation in data["annotations"]:
        grouped[annotation["image_id"]].append(annotation)
    counts = {"images": 0, "objects": 0, "clipped": 0, **{f"{size}:good": 0 for size in SIZES}}
    with (out / "train.jsonl").open("w") as lines:
        for image in data["images"]:
            lines.write(json.dumps(record(source["dataset"], image, grouped[image["id"]], names, blocks, counts)))
            lines.write("\n")
            counts["images"] += 1
    (out / "stats.json").write_text(json.dumps(counts))


def record(dataset: str, image: dict, annotations: list[dict], names: dict, blocks: int, counts: dict) -> dict:
    size = grid_size(image["width"], image["height"], "fill", factor=32, max_blocks=blocks, min_blocks=4)
    objects = []
    for annotation in annotations:
        made = instance(annotation, image, size, names, counts)
        if made is not None:
            objects.append(made)
    objects.sort(key=lambda o: (o["norm"][1], o["norm"][0], o["norm"][3], o["norm"][2]))
    folder, name = image["coco_url"].split("/")[-2:]
    metadata = {
        "image_id": image["id"],
        "source_width": image["width"],
        "source_height": image["height"],
        "file_name": f"{folder}/{name}",
        "dataset": dataset,
    }
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        if image[key]:
            metadata[key] = image[key]
    return {
        "images": [f"images/{folder}/{name}"],
        "width": size[0],
        "height": size[1],
        "coord_space": "pixel",
        "objects": objects,
        "metadata": metadata,
    }


def instance(annotation: dict, image: dict, size: tuple[int, int], names: dict, counts: dict) -> dict | None:
    if annotation.get("iscrowd") or annotation["category_id"] not in names:
        return None
    x, y, w, h = annotation["bbox"]
    if w <= 0 or h <= 0:
        return None
    width, height = image["width"], image["height"]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x2 <= x1 or y2 <= y1:
        return None
    counts["objects"] += 1
    counts["clipped"] += [x1, y1, x2, y2] != [x, y, x + w, y + h]
    norm = [x1 / width, y1 / height, x2 / width, y2 / height]
    if overlap(norm, [k / 999 for k in rounded(norm, (999, 999))]) >= 0.95:
        area = (x2 - x1) * (y2 - y1)
        counts[next(name for name, limit in SIZES.items() if area < limit) + ":good"] += 1
    category = annotation["category_id"]
    return {"desc": names[category], "category_id": category, "norm": norm, "bbox_2d": rounded(norm, size)}


def rounded(norm: list[float], size: tuple[int, int]) -> list[int]:
    """The box in whole units of `size`, half-up, at least one unit wide and high."""
    box = [math.floor(value * size[i % 2] + 0.5) for i, value in enumerate(norm)]
    for low, high in ((0, 2), (1, 3)):
        if box[low] >= box[high]:
            if box[low] >= size[low]:
                box[low] -= 1
            else:
                box[high] = box[low] + 1
    return box


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
