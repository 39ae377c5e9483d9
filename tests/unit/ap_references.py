"""AP by the reference implementations, and a slow version of lvis-api for where it is not installed."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
RANGES = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def pycocotools_metrics(annotations: Path, results: list[dict], iou_type: str = "bbox") -> dict[str, float | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(annotations))
        for row in gt.dataset["annotations"]:
            row.setdefault("iscrowd", 0)
        dt = gt.loadRes(results) if results else COCO()
        if not results:
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        evaluation = COCOeval(gt, dt, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: none_if_missing(v) for name, v in zip(COCO_NAMES, evaluation.stats, strict=True)}


def lvis_metrics(lvis, annotations: Path, results: list[dict], max_dets: int = 300) -> dict[str, float | None]:
    gt = lvis.LVIS(str(annotations))
    if results:
        dt = lvis.LVISResults(gt, results, max_dets=max_dets)
    else:  # lvis-api cannot load an empty list
        dt = lvis.LVISResults.__new__(lvis.LVISResults)
        dt.logger = gt.logger
        dt.dataset = {**gt.dataset, "annotations": []}
        dt._create_index()
    evaluation = lvis.LVISEval(gt, dt, "bbox")
    evaluation.params.max_dets = max_dets
    evaluation.run()
    found = {name: none_if_missing(v) for name, v in evaluation.get_results().items()}
    return {name.replace("@-1", "") if max_dets < 0 else name: value for name, value in found.items()}


def none_if_missing(value: float) -> float | None:
    return None if value == -1 else float(value)


def assert_same(ours: dict, reference: dict) -> None:
    assert set(reference) <= set(ours)
    for name, value in reference.items():
        assert ours[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


def lvis_ap(content: dict, results: list[dict], max_dets: int) -> dict[str, float | None]:
    """Box AP by loops over images, categories and boxes, after `lvis/eval.py` 0.5.3.

    AP, AP50, AP75, AP by size and frequency, AR by size; `max_dets` detections per image, -1 for all.
    """
    by_image = defaultdict(list)
    for row in results:
        by_image[row["image_id"]].append(row | {"area": row["bbox"][2] * row["bbox"][3]})
    for image_id, rows in by_image.items():
        best = sorted(rows, key=lambda row: row["score"], reverse=True)
        by_image[image_id] = best if max_dets < 0 else best[:max_dets]
    objects = [row for row in content["annotations"] if row["area"] > 0]
    found = [row for rows in by_image.values() for row in rows if row["area"] > 0]
    cells = {
        (category["id"], size): _cell(content, objects, found, category["id"], limits)
        for category in content["categories"]
        for size, limits in RANGES.items()
    }
    metrics = {f"AP{size}": _mean([cells[key][0] for key in cells if key[1] == size]) for size in RANGES}
    metrics |= {f"AR{size}": _mean([cells[key][1] for key in cells if key[1] == size]) for size in RANGES}
    every = [cells[category["id"], ""][0] for category in content["categories"]]
    metrics |= {"AP50": _mean([cell[0] for cell in every]), "AP75": _mean([cell[5] for cell in every])}
    for letter in "rcf":
        ids = [category["id"] for category in content["categories"] if category["frequency"] == letter]
        metrics[f"AP{letter}"] = _mean([cells[i, ""][0] for i in ids])
    return metrics


def _cell(content, objects, found, category, limits):
    """Precision [T, R] and recall [T] of one category and size; -1 without ground truth."""
    low, high = limits
    scores, matched, ignored, total = [], [], [], 0
    for image in sorted(content["images"], key=lambda image: image["id"]):
        same = [row for row in objects if (row["image_id"], row["category_id"]) == (image["id"], category)]
        if not same and category not in image["neg_category_ids"]:
            continue
        same.sort(key=lambda row: not low <= row["area"] <= high)
        outside = [not low <= row["area"] <= high for row in same]
        total += outside.count(False)
        mine = [row for row in found if (row["image_id"], row["category_id"]) == (image["id"], category)]
        mine.sort(key=lambda row: -row["score"])
        free = np.ones((len(THRESHOLDS), len(same)), dtype=bool)
        for row in mine:
            unjudged = not low <= row["area"] <= high or category in image["not_exhaustive_category_ids"]
            hits, skips = [], []
            for t, threshold in enumerate(THRESHOLDS):
                best, least = -1, min(threshold, 1 - 1e-10)
                for g, other in enumerate(same):
                    if not free[t, g]:
                        continue
                    if best >= 0 and not outside[best] and outside[g]:
                        break
                    if (iou := _iou(row["bbox"], other["bbox"])) >= least:
                        best, least = g, iou
                if best >= 0:
                    free[t, best] = False
                hits.append(best >= 0)
                skips.append(outside[best] if best >= 0 else unjudged)
            scores.append(row["score"])
            matched.append(hits)
            ignored.append(skips)
    if not total:
        return np.full((len(THRESHOLDS), 101), -1.0), np.full(len(THRESHOLDS), -1.0)
    order = np.argsort(-np.array(scores), kind="stable")
    precision, recall = np.zeros((len(THRESHOLDS), 101)), np.zeros(len(THRESHOLDS))
    for t in range(len(THRESHOLDS)):
        kept = [matched[i][t] for i in order if not ignored[i][t]]
        correct = np.cumsum(kept)
        for r, level in enumerate(RECALLS):
            reached = [c / (n + np.spacing(1)) for n, c in enumerate(correct, 1) if c / total >= level]
            precision[t, r] = max(reached, default=0)
        recall[t] = correct[-1] / total if kept else 0
    return precision, recall


def _iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def _mean(cells):
    values = np.concatenate([np.ravel(cell) for cell in cells]) if cells else np.zeros(0)
    values = values[values > -1]
    return float(values.mean()) if len(values) else None
