"""Time and size of a report over many images.

python benchmarks/evaluate_report.py [--images 5000] [--detections 150000] [--gallery 24] [--out FILE]

Images are 640 x 480 JPEG files with noise on a gradient (heavier than photographs); evaluation is not timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from evaluate_scoring import HEIGHT, WIDTH, make
from PIL import Image

from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.reporting.report import write_report

DISTINCT = 16


def records(folder: Path) -> None:
    """val.jsonl in pixel space and its images, which share 16 image files."""
    content = json.loads((folder / "annotations.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    objects: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        box = [x, y, min(x + w, WIDTH), min(y + h, HEIGHT)]
        norm = [v / s for v, s in zip(box, [WIDTH, HEIGHT] * 2, strict=True)]
        entry = {"desc": names[row["category_id"]], "category_id": row["category_id"], "norm": norm, "bbox_2d": box}
        objects[row["image_id"]].append(entry)
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, WIDTH)[None, :, None]
    for i in range(DISTINCT):
        pixels = np.clip(slope + rng.normal(20, 15, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=95)
    with (folder / "val.jsonl").open("w") as handle:
        for image in content["images"]:
            metadata = {"image_id": image["id"], "source_width": WIDTH, "source_height": HEIGHT}
            metadata |= {name: image[name] for name in ("neg_category_ids", "not_exhaustive_category_ids")}
            size = {"width": WIDTH, "height": HEIGHT, "coord_space": "pixel"}
            row = {"images": [f"{image['id'] % DISTINCT}.jpg"], **size, "objects": objects[image["id"]]}
            handle.write(json.dumps(row | {"metadata": metadata}) + "\n")
    with (folder / "log.jsonl").open("w") as handle:
        for step in range(1, 20_001):
            handle.write(
                json.dumps({"step": step, "loss": 5 / step**0.3, "l1": 1 / step**0.4, "giou": 2 / step**0.5}) + "\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=150_000)
    parser.add_argument("--gallery", type=int, default=24)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.images, args.detections, 1203, seed=1)
        records(folder)
        files = {"predictions": folder / "predictions.jsonl", "annotations": folder / "annotations.json"}
        evaluate(
            **files, options=EvaluateOptions(bootstrap=2), dataset="generated", split="val", out=folder / "eval.json"
        )
        start = time.perf_counter()
        write_report(
            folder / "report.html",
            eval_json=folder / "eval.json",
            predictions=files["predictions"],
            records_jsonl=folder / "val.jsonl",
            train_log=folder / "log.jsonl",
            provenance={},
            num_examples=args.gallery,
        )
        measured = {
            "images": args.images,
            "gallery": args.gallery,
            "seconds": round(time.perf_counter() - start, 2),
            "megabytes": round((folder / "report.html").stat().st_size / 1e6, 2),
            "peak_memory_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        }
    print(json.dumps(measured))
    if args.out:
        args.out.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
