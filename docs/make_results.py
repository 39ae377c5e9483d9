"""Draw docs/results.png from a finished demo: validation images with ground truth (top) and predictions (bottom).

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

FIGURE = Path(__file__).with_name("results.png")
COLUMNS, SIDE, GAP = 6, 192, 6  # images per row; pixels


def figure(run: Path) -> Image.Image:
    """The first images with at least two objects, not the best ones."""
    crowded = (record for record in read_records(run / "data/val.jsonl", "pixel") if len(record.objects) > 1)
    predictions = {row["image_id"]: row for row in read_jsonl(run / "eval/predictions.jsonl")}
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
    for column, record in enumerate(islice(crowded, COLUMNS)):
        image = Image.open(run / "data" / record.images[0]).convert("RGB")
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        ground_truth = [Detection(desc=o.desc, norm=o.norm, score=1.0) for o in record.objects]
        predicted = [Detection(**d) for d in predictions[record.metadata.image_id]["detections"]]
        for row, detections in enumerate((ground_truth, predicted)):
            canvas.paste(draw(image, detections), (column * (SIDE + GAP), row * (SIDE + GAP)))
    return canvas


if __name__ == "__main__":
    figure(Path(sys.argv[1])).quantize(128).save(FIGURE, optimize=True)
    print(f"{FIGURE}: {FIGURE.stat().st_size / 1e3:.0f} kB")
