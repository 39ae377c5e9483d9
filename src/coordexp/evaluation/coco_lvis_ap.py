"""Average precision by hotcoco: the twelve metrics of COCOeval, LVIS federated AP and fixed AP.

Metrics are computed from hotcoco's precision and recall arrays as COCOeval and lvis-api define them: the mean over the
entries that exist. A slice without ground truth is None, never -1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np
from hotcoco import COCO, COCOeval, LVISeval, LVISResults, mask

from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.greedy_matching import rank_in_group
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.large_groups import federated_category, large_categories
from coordexp.evaluation.result_types import PrecisionCurves
from coordexp.runtime import tuning

IoUType = Literal["bbox", "segm"]
FIXED_AP_PER_CATEGORY = 10_000
AREAS = ("all", "small", "medium", "large")
FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}


@dataclass(frozen=True)
class APScores:
    """AP and AR under one protocol."""

    metrics: dict[str, float | None]  # by name: AP, AP50, ..., AR...
    category_ap: np.ndarray  # float64 [K, 2], AP and AP50 of each category, nan without ground truth
    curves: PrecisionCurves


def coco(ground_truth: GroundTruth, detections: DetectionTable, max_dets: int, iou_type: IoUType = "bbox") -> APScores:
    """COCOeval: twelve metrics with at most `max_dets` detections per image and category."""
    kept = best_per_image_and_category(detections.take(detections.category >= 0), max_dets)
    tops = sorted({min(1, max_dets), min(10, max_dets), max_dets})
    precision, recall = _in_parts(COCOeval, ground_truth, kept, iou_type, tops)
    metrics = _precisions(precision)
    for top in (1, 10, max_dets):
        metrics[f"AR{top}"] = _mean(recall[:, :, 0, tops.index(min(top, max_dets))])
    metrics |= {f"AR{a[0]}": _mean(recall[:, :, i, -1]) for i, a in enumerate(AREAS) if i}
    return APScores(metrics, *_by_category(precision))


def lvis(ground_truth: GroundTruth, detections: DetectionTable, max_dets: int, iou_type: IoUType = "bbox") -> APScores:
    """lvis-api: federated AP with the `max_dets` best detections of each image over all categories."""
    kept = best_per_image(detections.take(detections.category >= 0), max_dets)
    return _federated(ground_truth, kept, iou_type, f"@{max_dets}")


def lvis_fixed(ground_truth: GroundTruth, detections: DetectionTable, iou_type: IoUType = "bbox") -> APScores:
    """Fixed AP (Dave et al., 2021): the 10,000 best detections of each category, no limit per image."""
    kept = best_per_category(detections.take(detections.category >= 0), FIXED_AP_PER_CATEGORY)
    return _federated(ground_truth, kept, iou_type, "")


def best_per_image(detections: DetectionTable, count: int) -> DetectionTable:
    """The `count` best detections of each image; the columns are in score order within an image."""
    return detections.take(rank_in_group(detections.image) < count)


def best_per_image_and_category(detections: DetectionTable, count: int) -> DetectionTable:
    """The `count` best detections of each image and category, in the order of the columns."""
    order = np.lexsort((detections.category, detections.image))  # keeps the score order within a group
    image, category = detections.image[order], detections.category[order]
    keep = np.zeros(len(detections), dtype=bool)
    keep[order[rank_in_group(image * (category.max(initial=0) + 1) + category) < count]] = True
    return detections.take(keep)


def best_per_category(detections: DetectionTable, count: int) -> DetectionTable:
    """The `count` best detections of each category over all images, in the order of the columns."""
    order = np.lexsort((detections.image, -detections.score, detections.category))
    keep = np.zeros(len(detections), dtype=bool)
    keep[order[rank_in_group(detections.category[order]) < count]] = True
    return detections.take(keep)


def hotcoco_ground_truth(ground_truth: GroundTruth, iou_type: IoUType = "bbox") -> COCO:
    """hotcoco's dataset, with images, objects and categories numbered from 1.

    The original ids may be strings or negative, and larger than a float64 represents.
    """
    count = ground_truth.num_categories
    lists: dict[str, list[list[int]]] = {}
    for name, codes in (
        ("neg_category_ids", ground_truth.negative),
        ("not_exhaustive_category_ids", ground_truth.not_exhaustive),
    ):
        lists[name] = [[] for _ in range(ground_truth.num_images)]
        for code in codes.tolist():
            lists[name][code // count].append(code % count + 1)
    images = [
        {"id": i + 1, "width": int(w), "height": int(h)} | {name: values[i] for name, values in lists.items()}
        for i, (w, h) in enumerate(ground_truth.sizes)
    ]
    extra: dict[str, Any] = {}
    if iou_type == "segm":
        extra["segmentation"] = [msgspec.json.decode(raw) for raw in ground_truth.segmentation]
    return COCO.from_arrays(
        images,
        [{"id": n, "name": c.name, "frequency": c.frequency or ""} for n, c in enumerate(ground_truth.categories, 1)],
        ground_truth.image + 1,
        ground_truth.category + 1,
        ground_truth.box,
        area=ground_truth.area,
        iscrowd=ground_truth.crowd,
        **extra,
    )


def hotcoco_results(gt: COCO, detections: DetectionTable, iou_type: IoUType = "bbox") -> COCO:
    """hotcoco's results of the detections with a category, in the order of the columns, without a limit."""
    mapped = detections.take(detections.category >= 0)
    rows = _rows(mapped)
    if iou_type == "bbox":
        return LVISResults(gt, rows, max_dets=-1)
    # no box is given, so that hotcoco computes the area from the mask
    return LVISResults(
        gt,
        [
            {"image_id": int(row[0]), "category_id": int(row[6]), "score": float(row[5]), "segmentation": polygon}
            for row, polygon in zip(rows, _polygons(mapped), strict=True)
        ],
        max_dets=-1,
    )


def _federated(ground_truth: GroundTruth, detections: DetectionTable, iou_type: IoUType, suffix: str) -> APScores:
    """Federated AP of all `detections`.

    As in lvis-api, objects and detections without area are left out, and a crowd is an object like any other.
    """
    truth = replace(ground_truth, crowd=np.zeros_like(ground_truth.crowd)).of_objects(ground_truth.has_area)
    found = detections.take(_areas(detections, ground_truth, iou_type) > 0)
    large = large_categories(truth, found) if iou_type == "bbox" else np.zeros(0, dtype=np.int64)
    small = truth.of_objects(~np.isin(truth.category, large))
    in_small = found.take(~np.isin(found.category, large))
    precision, recall = _in_parts(LVISeval, small, in_small, iou_type, [max(len(found), 1)])
    for category in large:
        in_category = federated_category(truth, found, category)
        precision[:, :, category, :, -1], recall[:, category, :, -1] = in_category
    metrics = _precisions(precision)
    frequency = np.array([c.frequency or "" for c in ground_truth.categories])
    for letter, name in FREQUENCIES.items():
        metrics[name] = _mean(precision[:, :, frequency == letter, 0, -1])
    metrics |= {f"AR{'' if not i else a[0]}{suffix}": _mean(recall[:, :, i, -1]) for i, a in enumerate(AREAS)}
    return APScores(metrics, *_by_category(precision))


def _areas(detections: DetectionTable, ground_truth: GroundTruth, iou_type: IoUType) -> np.ndarray:
    """Area of each box, or of each mask in pixels of the image."""
    if iou_type == "bbox":
        return detections.box[:, 2] * detections.box[:, 3]
    sizes = ground_truth.sizes[detections.image].astype(int).tolist()
    pairs = zip(_polygons(detections), sizes, strict=True)
    masks = [mask.merge(mask.frPyObjects(polygon, height, width)) for polygon, (width, height) in pairs]
    return np.array([mask.area(rle) for rle in masks], dtype=np.float64)


def _in_parts(
    evaluator: type[COCOeval] | type[LVISeval],
    ground_truth: GroundTruth,
    detections: DetectionTable,
    iou_type: IoUType,
    max_dets: list[int],
) -> tuple[np.ndarray, np.ndarray]:
    """`_run` for ranges of categories with about `DETECTIONS_PER_PART` detections, one after the other."""
    counts = np.bincount(detections.category, minlength=ground_truth.num_categories)
    part = np.cumsum(counts) // tuning.DETECTIONS_PER_PART
    starts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), ground_truth.num_categories]
    arrays = []
    for first, stop in itertools.pairwise(starts):
        truth, found = _of_categories(ground_truth, first, stop), detections
        if truth is not ground_truth:
            found = detections.take((detections.category >= first) & (detections.category < stop))
            found = replace(found, category=found.category - first)
        gt = hotcoco_ground_truth(truth, iou_type)
        arrays.append(_run(evaluator(gt, hotcoco_results(gt, found, iou_type), iou_type), max_dets))
    precision, recall = zip(*arrays, strict=True)
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def _of_categories(ground_truth: GroundTruth, first: int, stop: int) -> GroundTruth:
    """Ground truth of the categories from index `first` to before `stop` only, numbered from 0."""
    count = ground_truth.num_categories
    if (first, stop) == (0, count):
        return ground_truth
    inside = (ground_truth.category >= first) & (ground_truth.category < stop)
    objects = ground_truth.of_objects(inside)

    def codes(pairs: np.ndarray) -> np.ndarray:
        image, category = np.divmod(pairs, count)
        kept = (category >= first) & (category < stop)
        return image[kept] * (stop - first) + category[kept] - first

    return replace(
        objects,
        categories=ground_truth.categories[first:stop],
        category=objects.category - first,
        negative=codes(ground_truth.negative),
        not_exhaustive=codes(ground_truth.not_exhaustive),
    )


def _run(evaluator: COCOeval, max_dets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M], -1 without ground truth."""
    evaluator.params.max_dets = max_dets
    evaluator.evaluate()
    evaluator.accumulate()
    arrays = evaluator.eval
    if arrays is None:
        raise RuntimeError("hotcoco returned no arrays")
    labels = list(evaluator.params.area_rng_lbl)
    areas = [labels.index(a) for a in AREAS]
    return np.asarray(arrays["precision"])[:, :, :, areas], np.asarray(arrays["recall"])[:, :, areas]


def _precisions(precision: np.ndarray) -> dict[str, float | None]:
    at_50, at_75 = 0, 5
    metrics = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[at_50, :, :, 0, -1]),
        "AP75": _mean(precision[at_75, :, :, 0, -1]),
    }
    return metrics | {f"AP{a[0]}": _mean(precision[:, :, :, i, -1]) for i, a in enumerate(AREAS) if i}


def _by_category(precision: np.ndarray) -> tuple[np.ndarray, PrecisionCurves]:
    """AP and AP50 of each category, and the mean precision at 101 recall levels."""
    all_areas = precision[:, :, :, 0, -1]
    exists = (all_areas > -1).all(axis=(0, 1))
    ap = np.full((all_areas.shape[2], 2), np.nan)
    ap[exists, 0] = all_areas[:, :, exists].mean(axis=(0, 1))
    ap[exists, 1] = all_areas[0][:, exists].mean(axis=0)
    kept = all_areas[:, :, exists]
    if not exists.any():
        kept = np.zeros((*all_areas.shape[:2], 1))
    curves = (kept[0].mean(axis=1), kept[5].mean(axis=1), kept.mean(axis=(0, 2)))
    at_50, at_75, mean = (np.round(curve, 6).tolist() for curve in curves)
    return ap, PrecisionCurves(iou_50=at_50, iou_75=at_75, mean=mean)


def _mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _rows(detections: DetectionTable) -> np.ndarray:
    columns = detections.image + 1, detections.box, detections.score, detections.category + 1
    return np.column_stack(columns).astype(np.float64, copy=False)


def _polygons(detections: DetectionTable) -> list[list[list[float]]]:
    """The polygon of each detection, or its box as a polygon."""
    polygons = []
    for i, (x, y, w, h) in enumerate(detections.box.tolist()):
        poly = detections.poly[i] if detections.poly else None
        polygons.append([poly or [x, y, x + w, y, x + w, y + h, x, y + h]])
    return polygons
