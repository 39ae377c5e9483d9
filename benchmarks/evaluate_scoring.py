"""Scoring compared with pycocotools and lvis-api: seconds from files to metrics, and the largest difference.

python benchmarks/evaluate_scoring.py [--count 5000] [--detections 150000] [--out FILE]

Both read the same annotation file and the same detections (predictions.jsonl or COCO results, both in the order of the
tie rule) and compute the twelve COCO or thirteen LVIS metrics. The references run once. `full_evaluation` is
`evaluate()`: AP, fixed AP, F1, calibration, intervals and breakdowns.
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
from typing import Any

import numpy as np

from coordexp.evaluation import coco_lvis_ap
from coordexp.evaluation.detections import collect_detections, read_predictions
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.ground_truth import load_ground_truth
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.results import EvalResult

COCO_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
WIDTH, HEIGHT = 640, 480


def make(folder: Path, num_images: int, count: int, kinds: int, seed: int) -> None:
    """annotations.json (LVIS format), predictions.jsonl and results.json; half of the detections lie on objects."""
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
        object_boxes = boxes(rng, objects)
        absent = pool[4:]
        lists = {"neg_category_ids": (absent[:5] + 1).tolist(), "not_exhaustive_category_ids": (pool[:1] + 1).tolist()}
        images.append({"id": i, "width": WIDTH, "height": HEIGHT, **lists})
        for k, (x, y, w, h) in zip(present.tolist(), object_boxes.tolist(), strict=True):
            number = len(annotations) + 1
            row = {"id": number, "image_id": i, "category_id": k + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append(row)
        near = rng.integers(0, objects, each // 2)
        found = np.concatenate(
            [np.round(object_boxes[near] + rng.normal(0, 4, (len(near), 4)), 2), boxes(rng, each - len(near))]
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
    gt = load_ground_truth(folder / "annotations.json")
    detections, _ = collect_detections(read_predictions(folder / "predictions.jsonl"), gt, LabelMap(gt.categories))
    if protocol == "coco":
        return coco_lvis_ap.coco(gt, detections, 100).metrics
    return coco_lvis_ap.lvis(gt, detections, 300).metrics


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
    run = import_lvis().LVISEval(str(folder / "annotations.json"), str(folder / "results.json"), "bbox")
    run.run()
    return dict(run.get_results())


def import_lvis() -> types.ModuleType:
    """The module `lvis`, which imports cv2 and uses an alias that numpy has dropped."""
    if importlib.util.find_spec("cv2") is None:
        sys.modules["cv2"] = types.ModuleType("cv2")  # only its drawing needs it
    np.float = float  # dropped by numpy, still used by lvis 0.5.3
    return importlib.import_module("lvis")


def seconds(work: Callable[[], Any], repeat: int) -> tuple[float, Any]:
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
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    measured = {}
    for protocol, kinds, reference in (("coco", 80, pycocotools), ("lvis", 1203, lvis_api)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, args.count, args.detections, kinds, seed=1)
            own, numbers = seconds(lambda: ours(folder, protocol), 3)  # noqa: B023
            full, _ = seconds(lambda: full_evaluation(folder, protocol), 1)  # noqa: B023
            theirs, expected = seconds(lambda: reference(folder), 1)  # noqa: B023
            difference = max(abs((numbers[k] if numbers[k] is not None else -1) - v) for k, v in expected.items())
            measured[protocol] = {
                "categories": kinds,
                "seconds": round(own, 2),
                "reference_seconds": round(theirs, 2),
                "ratio": round(theirs / own, 1),
                "full_evaluation_seconds": round(full, 2),
                "largest_difference": difference,
                "AP": numbers["AP"],
            }
            print(protocol, json.dumps(measured[protocol]))
    if args.out:
        args.out.write_text(json.dumps(measured, indent=2) + "\n")


def full_evaluation(folder: Path, protocol: str) -> EvalResult:
    options = EvaluateOptions(protocols=(protocol,))
    return evaluate(
        folder / "predictions.jsonl", folder / "annotations.json", options, dataset="generated", split="val"
    )


if __name__ == "__main__":
    main()
