"""Draw docs/results.png from a finished demo: the first images with two shapes of its validation split, truth
above predictions.

    python docs/make_results.py results/shapes_9
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from PIL import Image

from coordexp.inference.draw import draw
from coordexp.records import Detection, read_records
from coordexp.runtime.io import read_jsonl

PICTURE = Path(__file__).with_name("results.png")
COUNT, SIDE, GAP = 6, 192, 6  # images in a row; pixels


def sheet(run: Path) -> Image.Image:
    """Truth in the upper row, what was predicted in the lower one; the first such images, not the best."""
    several = (r for r in read_records(run / "data/val.jsonl", "pixel") if len(r.objects) > 1)
    records = list(islice(several, COUNT))
    rows = {row["image_id"]: row for row in read_jsonl(run / "eval/predictions.jsonl")}
    canvas = Image.new("RGB", (COUNT * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
    for column, record in enumerate(records):
        image = (
            Image.open(run / "data" / record.images[0]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        )
        found = [Detection(**d) for d in rows[record.metadata.image_id]["detections"]]
        ground_truth = [Detection(desc=o.desc, norm=o.norm, score=1.0) for o in record.objects]
        for row, detections in enumerate((ground_truth, found)):
            canvas.paste(draw(image, detections), (column * (SIDE + GAP), row * (SIDE + GAP)))
    return canvas


if __name__ == "__main__":
    sheet(Path(sys.argv[1])).quantize(128).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")
