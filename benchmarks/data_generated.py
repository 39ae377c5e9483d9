"""Generated sources of any size for the data benchmarks: LVIS annotations, and photos like photographs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from coordexp.datasets.source import Source
from coordexp.runtime.io import sha256_file, write_json

CATEGORIES = 1203
PER_IMAGE = 12.7  # annotations per image in LVIS v1 train: 1.27 M in 100 k
POINTS = (8, 110)  # points of an outline: about 900 bytes an annotation, a gigabyte in all


def write_lvis(folder: Path, photos: int, *, seed: int = 0) -> Path:
    """A manifest and an LVIS v1 annotation file of `photos` photos under `folder`, written as a stream."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    outlines = [_outline(rng, int(n)) for n in np.linspace(*POINTS, 500)]
    sizes = [(640, 480), (480, 640), (640, 427), (500, 375), (612, 612)]
    path = folder / "annotations.json"
    counts = rng.poisson(PER_IMAGE, photos)
    with path.open("w") as out:
        out.write('{"info": {"description": "generated"}, "annotations": [')
        owners = rng.permutation(np.repeat(np.arange(photos), counts))  # scattered, as in the real files
        for k, owner in enumerate(owners.tolist()):
            width, height = sizes[owner % len(sizes)]
            x, y = rng.uniform(0, 0.9, 2) * (width, height)
            w, h = np.minimum(np.exp(rng.uniform(1, 5.5, 2)), (width - x, height - y))
            out.write(", " if k else "")
            out.write(
                f'{{"area": {w * h:.2f}, "id": {k + 1}, "segmentation": {outlines[k % 500]}, "image_id": {owner + 1}, '
                f'"bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], "category_id": {k * 7 % CATEGORIES + 1}}}'
            )
        out.write('], "images": [')
        for i in range(photos):
            width, height = sizes[i % len(sizes)]
            image = {
                "id": i + 1,
                "width": width,
                "height": height,
                "coco_url": f"http://images.cocodataset.org/train2017/{i % 1000:012d}.jpg",
                "neg_category_ids": [(i * k) % CATEGORIES + 1 for k in range(1, 10)],
                "not_exhaustive_category_ids": [i % CATEGORIES + 1] if i % 3 == 0 else [],
            }
            out.write((", " if i else "") + json.dumps(image))
        table = [{"id": c + 1, "name": f"thing_{c}", "frequency": "rcf"[c % 3]} for c in range(CATEGORIES)]
        out.write(f'], "categories": {json.dumps(table)}}}')
    manifest = folder / "train.source.json"
    write_json(
        manifest,
        Source(
            dataset="lvis",
            split="train",
            format="lvis",
            federated=True,
            annotations="annotations.json",
            image_dirs=["train2017"],
            annotations_sha256=sha256_file(path),
        ),
    )
    return manifest


def write_photographs(
    folder: Path, count: int, *, different: int = 40, seed: int = 0, originals: list[Path] | None = None
) -> Path:
    """`count` JPEGs like COCO's, `different` of them, the rest hard links to these; returns a manifest.

    With `originals` these files are repeated instead.
    """
    different = len(originals) if originals else different
    photos = folder / "train2017"
    photos.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        width, height = ((640, 480), (480, 640), (640, 427))[i % different % 3]
        target = photos / f"{i:012d}.jpg"
        if i < different and originals:
            shutil.copyfile(originals[i], target)
        elif i < different:
            coarse = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
            smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
            grain = Image.fromarray(rng.normal(128, 24, (height, width, 3)).clip(0, 255).astype(np.uint8))
            Image.blend(smooth, grain.filter(ImageFilter.GaussianBlur(1)), 0.4).save(target, quality=92)
        else:
            os.link(photos / f"{i % different:012d}.jpg", target)
        if originals:
            with Image.open(target) as image:
                width, height = image.size
        images.append({"id": i + 1, "file_name": target.name, "width": width, "height": height})
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    manifest = folder / "train.source.json"
    write_json(
        manifest,
        Source(
            dataset="photographs",
            split="train",
            format="coco",
            federated=False,
            annotations="annotations.json",
            image_dirs=["train2017"],
            annotations_sha256=sha256_file(path),
        ),
    )
    return manifest


def _outline(rng: np.random.Generator, points: int) -> str:
    """A closed outline as LVIS writes it: `[[x, y, ...]]` with two decimals."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = rng.uniform(20, 60, points)[:, None]
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + rng.uniform(80, 300, 2)
    return json.dumps([np.round(ring, 2).ravel().tolist()])
