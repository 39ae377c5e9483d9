"""Small datasets in formats with one entry per image, and what each format makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_cases import draw_image

from coordexp.datasets.annotation_index import build_index
from coordexp.datasets.download import provide

SIZES = {"a.jpg": (160, 120), "sub/b.jpg": (200, 100), "c.png": (64, 64)}


def image_folder(root: Path, names: dict[str, tuple[int, int]] = SIZES) -> Path:
    """A folder of small images, `root/images`."""
    for seed, (name, size) in enumerate(names.items()):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(*size, seed).save(path)
    return root


def json_lines(*values: Any) -> bytes:
    """JSON lines; a value that is bytes is a line as it is."""
    return b"".join((v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n" for v in values)


def provided(root: Path, entry: dict[str, Any], split: str = "train") -> dict[str, Any]:
    """The content of the annotation file that the format makes of a split."""
    work = root / "work"
    source = provide("mine", {"root": str(root), **entry}, split, work / "raw", work / f"{split}.source.json")
    build_index(work / source.annotations)  # what conversion reads
    return json.loads((work / source.annotations).read_text())


def boxes(content: dict[str, Any]) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """[(category name, rounded x, y, width, height)] by file name."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    found: dict[str, list] = {name: [] for name in files.values()}
    for a in content["annotations"]:
        box = tuple(round(v, 3) for v in a["bbox"])
        found[files[a["image_id"]]].append((names[a["category_id"]], box))
    return found


def skipped(content: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    """(kind, reason, line) of everything that was left out."""
    return [(s["kind"], s["reason"], s.get("line")) for s in content.get("skipped", [])]
