"""Breakdowns of one protocol's matches: by object size, by images' density, by category and frequency."""

from __future__ import annotations

from typing import Any

import numpy as np

from coordexp.evaluation import f1
from coordexp.evaluation.average_precision import RankedMatches, mean_ap
from coordexp.evaluation.coco_lvis_ap import Scores
from coordexp.evaluation.greedy_matching import Matches
from coordexp.evaluation.ground_truth import GroundTruth

# square pixels of the annotation, COCO's own limits
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
# objects a image, inclusive
DENSITIES = {"0": (0, 0), "1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11-20": (11, 20), "21+": (21, 10**9)}
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}


def by_size(ground_truth: GroundTruth, matches: Matches, scores: Scores) -> list[dict[str, Any]]:
    """Objects, AP and recall (any number of detections) at IoU .5, .75 and .5:.95 for each size."""
    rows = []
    for name, (low, high) in SIZES.items():
        here = matches.counts & (ground_truth.area >= low) & (ground_truth.area < high)
        found = matches.found[here]
        rows.append(
            {
                "size": name,
                "area_px": [low, high if np.isfinite(high) else None],
                "objects": int(here.sum()),
                "AP": scores.metrics[f"AP{name[0]}"],
                "recall_50": _share(found[:, 0]),
                "recall_75": _share(found[:, 5]),
                "recall": _share(found),
            }
        )
    return rows


def by_density(ground_truth: GroundTruth, ranked: RankedMatches, table: f1.F1Table) -> list[dict[str, Any]]:
    """AP and F1 over the images with that many objects; images without objects have false positives only."""
    rows = []
    for name, (low, high) in DENSITIES.items():
        weights = ((ground_truth.objects_per_image >= low) & (ground_truth.objects_per_image <= high)).astype(np.int64)
        counts = table.counts(weights)
        ap = ranked.average_precision(weights)
        score, precision, recall = f1.micro(counts)
        has_objects = counts.objects.sum() > 0
        rows.append(
            {
                "objects_per_image": name,
                "images": int(weights.sum()),
                "objects": int(counts.objects.sum()),
                "true_positives_50": int(counts.hits[:, 0].sum()),
                "false_positives_50": int(counts.alarms[:, 0].sum() + counts.unmapped),
                "AP": none_if_nan(mean_ap(ap)),
                "AP50": none_if_nan(mean_ap(ap[:, :1])),
                "precision_50": float(precision[0]),
                "recall_50": float(recall[0]) if has_objects else None,
                "F1_50": float(score[0]) if has_objects else None,
            }
        )
    return rows


def by_category(ground_truth: GroundTruth, matches: Matches, table: f1.F1Table, scores: Scores) -> list[dict[str, Any]]:
    """One row a category with truth or detections: AP, F1 at IoU .5 and what they rest on."""
    counts = table.counts()
    f1_50 = f1.by_category(counts)[:, 0]
    detections = np.bincount(matches.category, minlength=matches.categories)
    return [
        {
            "id": category.id,
            "name": category.name,
            "frequency": category.frequency,
            "objects": int(counts.objects[k]),
            "detections": int(detections[k]),
            "AP": none_if_nan(scores.category_ap[k, 0]),
            "AP50": none_if_nan(scores.category_ap[k, 1]),
            "F1_50": none_if_nan(f1_50[k]),
        }
        for k, category in enumerate(ground_truth.categories)
        if counts.objects[k] or detections[k]
    ]


def by_frequency(ground_truth: GroundTruth, table: f1.F1Table, scores: Scores) -> list[dict[str, Any]]:
    """Rare, common, frequent: categories with truth, objects, AP and macro F1 at IoU .5 (zeros kept)."""
    counts = table.counts()
    f1_50 = f1.by_category(counts)[:, 0]
    letters = np.array([c.frequency or "" for c in ground_truth.categories])
    rows = []
    for letter, name in FREQUENCY_NAMES.items():
        here = letters == letter
        kept = f1_50[here][~np.isnan(f1_50[here])]
        rows.append(
            {
                "frequency": name,
                "categories": int((counts.objects[here] > 0).sum()),
                "objects": int(counts.objects[here].sum()),
                "AP": scores.metrics.get(f"AP{letter}"),
                "F1_50_macro": float(kept.mean()) if len(kept) else None,
            }
        )
    return rows


def none_if_nan(value: float) -> float | None:
    """A plain float, or None for nan, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if flags.size else None
