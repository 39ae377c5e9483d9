"""Breakdowns of one protocol: by object size, objects per image, category and category frequency."""

from __future__ import annotations

import numpy as np

from coordexp.evaluation import f1
from coordexp.evaluation.average_precision import RankedMatches, mean_ap
from coordexp.evaluation.coco_lvis_ap import APScores
from coordexp.evaluation.greedy_matching import Matches
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.result_types import CategoryRow, DensityRow, FrequencyRow, SizeRow

# square pixels of the annotation; the limits of COCOeval
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
# objects per image, inclusive
DENSITIES = {"0": (0, 0), "1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11-20": (11, 20), "21+": (21, 10**9)}
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}


def by_size(ground_truth: GroundTruth, matches: Matches, scores: APScores) -> list[SizeRow]:
    """Number of objects, AP and recall for each size class."""
    rows = []
    for name, (low, high) in SIZES.items():
        selected = matches.object_counted & (ground_truth.area >= low) & (ground_truth.area < high)
        matched = matches.object_matched[selected]
        rows.append(
            SizeRow(
                size=name,
                area_px=(low, high if np.isfinite(high) else None),
                objects=int(selected.sum()),
                AP=scores.metrics[f"AP{name[0]}"],
                recall_50=_mean(matched[:, 0]),
                recall_75=_mean(matched[:, 5]),
                recall=_mean(matched),
            )
        )
    return rows


def by_density(ground_truth: GroundTruth, ranked: RankedMatches, table: f1.F1Table) -> list[DensityRow]:
    """AP and F1 over the images with a given number of objects; images without objects have false positives only."""
    rows = []
    for name, (low, high) in DENSITIES.items():
        weights = ((ground_truth.objects_per_image >= low) & (ground_truth.objects_per_image <= high)).astype(np.int64)
        counts = table.counts(weights)
        ap = ranked.average_precision(weights)
        score, precision, recall = f1.micro(counts)
        has_objects = counts.objects.sum() > 0
        rows.append(
            DensityRow(
                objects_per_image=name,
                images=int(weights.sum()),
                objects=int(counts.objects.sum()),
                true_positives_50=int(counts.true_positives[:, 0].sum()),
                false_positives_50=int(counts.false_positives[:, 0].sum() + counts.unmapped),
                AP=none_if_nan(mean_ap(ap)),
                AP50=none_if_nan(mean_ap(ap[:, :1])),
                precision_50=float(precision[0]),
                recall_50=float(recall[0]) if has_objects else None,
                F1_50=float(score[0]) if has_objects else None,
            )
        )
    return rows


def by_category(ground_truth: GroundTruth, matches: Matches, table: f1.F1Table, scores: APScores) -> list[CategoryRow]:
    """AP and F1 of each category with ground truth or detections."""
    counts = table.counts()
    f1_50 = f1.by_category(counts)[:, 0]
    detections = np.bincount(matches.category, minlength=matches.num_categories)
    return [
        CategoryRow(
            id=category.id,
            name=category.name,
            frequency=category.frequency,
            objects=int(counts.objects[k]),
            detections=int(detections[k]),
            AP=none_if_nan(scores.category_ap[k, 0]),
            AP50=none_if_nan(scores.category_ap[k, 1]),
            F1_50=none_if_nan(f1_50[k]),
        )
        for k, category in enumerate(ground_truth.categories)
        if counts.objects[k] or detections[k]
    ]


def by_frequency(ground_truth: GroundTruth, table: f1.F1Table, scores: APScores) -> list[FrequencyRow]:
    """AP and macro F1 over the rare, common and frequent categories of LVIS."""
    counts = table.counts()
    f1_50 = f1.by_category(counts)[:, 0]
    frequency = np.array([c.frequency or "" for c in ground_truth.categories])
    rows = []
    for letter, name in FREQUENCY_NAMES.items():
        selected = frequency == letter
        defined = f1_50[selected][~np.isnan(f1_50[selected])]
        rows.append(
            FrequencyRow(
                frequency=name,
                categories=int((counts.objects[selected] > 0).sum()),
                objects=int(counts.objects[selected].sum()),
                AP=scores.metrics.get(f"AP{letter}"),
                F1_50_macro=_mean(defined),
            )
        )
    return rows


def none_if_nan(value: float) -> float | None:
    """The value as a float, or None for nan, which JSON cannot hold."""
    return None if np.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
