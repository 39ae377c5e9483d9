"""Scoring against pycocotools and lvis-api: seconds from files to numbers, and whether the numbers are equal.

python benchmarks/evaluate_scoring.py [--count 5000] [--detections 150000] [--out FILE]

Both read the same annotation file and the same detections (predictions.jsonl here, COCO results there; both in
the tie rule's order) and give the twelve COCO numbers or the thirteen LVIS numbers. The references run once.
`everything` is `evaluate()`: both protocols, fixed AP, F1, calibration, intervals, tables.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordexp.evaluation import EvaluateOptions, detections, evaluate, ground_truth
from coordexp.evaluation import coco_lvis_ap as engine
from coordexp.evaluation import external_predictions as foreign
from coordexp.evaluation.label_mapping import LabelMap

COCO_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
WIDTH, HEIGHT = 640, 480


def make(folder: Path, num_images: int, count: int, kinds: int, seed: int) -> None:
    """annotations.json (LVIS layout), predictions.jsonl and results.json; half of the detections lie on objects."""
    rng = np.random.default_rng(seed)
    categories = [
        {"id": k + 1, "name": f"thing{k:04d}", "frequency": "rcf"[k % 3], "synonyms": []} for k in range(kinds)
    ]
    images, annotations, lines, results = [], [], [], []
    each = count // num_images
    for i in range(1, num_images + 1):
        objects = int(rng.integers(3, 12))
        pool = rng.permutation(kinds)[:12]
        present = rng.choice(pool[:4], objects)
        truth_boxes = boxes(rng, objects)
        absent = pool[4:]
        lists = {"neg_category_ids": (absent[:5] + 1).tolist(), "not_exhaustive_category_ids": (pool[:1] + 1).tolist()}
        images.append({"id": i, "width": WIDTH, "height": HEIGHT, **lists})
        for k, (x, y, w, h) in zip(present.tolist(), truth_boxes.tolist(), strict=True):
            number = len(annotations) + 1
            row = {"id": number, "image_id": i, "category_id": k + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append(row)
        near = rng.integers(0, objects, each // 2)
        found = np.concatenate(
            [np.round(truth_boxes[near] + rng.normal(0, 4, (len(near), 4)), 2), boxes(rng, each - len(near))]
        )
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        shown = np.concatenate([present[near], rng.choice(pool, each - len(near))])
        score = np.round(rng.uniform(size=each), 3)
        order = np.lexsort((*found.T[::-1], shown, -score))
        rows = []
        for j in order.tolist():
            x, y, w, h = (round(v, 2) for v in found[j].tolist())
            k, s = int(shown[j]), float(score[j])
            results.append({"image_id": i, "category_id": k + 1, "bbox": [x, y, w, h], "score": s})
            norm = [x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT]
            rows.append({"desc": categories[k]["name"], "norm": norm, "score": s})
        head = {"image_id": i, "source_width": WIDTH, "source_height": HEIGHT, "protocol": "open", "finish": "stop"}
        lines.append({**head, "text": "", "detections": rows})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    w, h = np.exp(rng.uniform(2, 5.3, (2, count)))
    x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
    return np.round(np.stack([x, y, w, h], axis=1), 2)


def ours(folder: Path, protocol: str) -> dict:
    gt = ground_truth.load(folder / "annotations.json")
    found, _ = detections.collect(foreign.read(folder / "predictions.jsonl", gt), gt, LabelMap(gt.categories))
    return (engine.coco(gt, found, 100) if protocol == "coco" else engine.lvis(gt, found, 300)).metrics


def pycocotools(folder: Path) -> dict:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(folder / "annotations.json"))
        run = COCOeval(gt, gt.loadRes(str(folder / "results.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(COCO_NAMES, run.stats.tolist(), strict=True))


def lvis_api(folder: Path) -> dict:
    if importlib.util.find_spec("cv2") is None:
        sys.modules["cv2"] = types.ModuleType("cv2")  # only its drawing needs it
    np.float = float  # dropped by numpy, still used by lvis 0.5.3
    lvis = importlib.import_module("lvis")
    run = lvis.LVISEval(str(folder / "annotations.json"), str(folder / "results.json"), "bbox")
    run.run()
    return dict(run.get_results())


def seconds(work: Callable[[], dict], repeat: int) -> tuple[float, dict]:
    """Best of `repeat` runs."""
    best, result = float("inf"), {}
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=150_000)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    figures = {}
    for protocol, kinds, reference in (("coco", 80, pycocotools), ("lvis", 1203, lvis_api)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, args.count, args.detections, kinds, seed=1)
            own, numbers = seconds(lambda: ours(folder, protocol), 3)  # noqa: B023
            whole, _ = seconds(lambda: everything(folder, protocol), 1)  # noqa: B023
            theirs, expected = seconds(lambda: reference(folder), 1)  # noqa: B023
            difference = max(abs((numbers[k] if numbers[k] is not None else -1) - v) for k, v in expected.items())
            figures[protocol] = {
                "categories": kinds,
                "seconds": round(own, 2),
                "reference_seconds": round(theirs, 2),
                "ratio": round(theirs / own, 1),
                "everything_seconds": round(whole, 2),
                "largest_difference": difference,
                "AP": numbers["AP"],
            }
            print(protocol, json.dumps(figures[protocol]))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


def everything(folder: Path, protocol: str) -> dict:
    options = EvaluateOptions(protocols=(protocol,))
    return evaluate(folder / "predictions.jsonl", folder / "annotations.json", options, dataset="made", split="val")


if __name__ == "__main__":
    main()
