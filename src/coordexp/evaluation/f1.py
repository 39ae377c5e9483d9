"""F1 of the answers as given: no score threshold, one value per IoU threshold, under two rules.

`all_predictions` counts every detection, unmapped descriptions included if the annotations are exhaustive; macro F1 is
the mean over every category with ground truth. `prompted_only` is a common choice in published tables: detections of
categories that are absent from the image are dropped (as if the prompt had named the categories of the image), and so
are unmapped ones; macro F1 leaves out categories without a true positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordexp.evaluation.greedy_matching import Matches
from coordexp.evaluation.result_types import AtIoU, F1Summary

ALL_PREDICTIONS = (
    "all detections count, unmapped descriptions are false positives if the annotations are exhaustive; "
    "macro over every category with ground truth"
)
PROMPTED_ONLY = (
    "only detections of categories that are annotated in the image count, unmapped descriptions are dropped; "
    "macro over categories with a true positive at the threshold"
)


@dataclass(frozen=True)
class F1Counts:
    """Counts by category, float64 [K, T] or [K], and false positives without a category."""

    true_positives: np.ndarray  # [K, T]
    false_positives: np.ndarray  # [K, T]
    objects: np.ndarray  # [K]
    unmapped: float


class F1Table:
    """Counts of matches under image weights. `unmapped` holds the image index of each unmapped detection."""

    def __init__(self, matches: Matches, unmapped: np.ndarray, *, prompted_only: bool = False):
        self._object_image = matches.object_image[matches.object_counted]
        self._object_category = matches.object_category[matches.object_counted]
        keep = np.ones(len(matches.row), dtype=bool)
        if prompted_only:
            present = np.unique(self._object_image * matches.num_categories + self._object_category)
            keep = np.isin(matches.image * matches.num_categories + matches.category, present)
        self.num_categories, self.num_images = matches.num_categories, matches.num_images
        self.prompted_only = prompted_only
        self._image, self._category = matches.image[keep], matches.category[keep]
        self._matched = [np.flatnonzero(flags) for flags in matches.matched[keep].T]
        self._ignored = [np.flatnonzero(flags) for flags in matches.ignored[keep].T]
        self._unmapped = unmapped[:0] if prompted_only else unmapped

    def counts(self, weights: np.ndarray | None = None) -> F1Counts:
        """Counts with each image taken `weights` (int64 [I]) times; once each by default."""
        weights = np.ones(self.num_images, dtype=np.int64) if weights is None else weights
        weight = weights[self._image]
        detections = np.bincount(self._category, weight, minlength=self.num_categories)
        true_positives = self._sum(self._matched, weight)
        return F1Counts(
            true_positives=true_positives,
            false_positives=detections[:, None] - true_positives - self._sum(self._ignored, weight),
            objects=np.bincount(self._object_category, weights[self._object_image], minlength=self.num_categories),
            unmapped=float(weights[self._unmapped].sum()),
        )

    def _sum(self, rows: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
        columns = [np.bincount(self._category[r], weight[r], minlength=self.num_categories) for r in rows]
        return np.stack(columns, axis=1)

    def per_image(self, threshold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True positives, false positives and objects per image, int64 [I] each, at the threshold of this index."""
        true_positives, ignored = (
            np.bincount(self._image[rows[threshold]], minlength=self.num_images)
            for rows in (self._matched, self._ignored)
        )
        false_positives = np.bincount(self._image, minlength=self.num_images) - true_positives - ignored
        false_positives += np.bincount(self._unmapped, minlength=self.num_images)
        return true_positives, false_positives, np.bincount(self._object_image, minlength=self.num_images)


def micro(counts: F1Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, precision and recall over all objects, float64 [T]; 0 where the denominator is 0."""
    true_positives = counts.true_positives.sum(axis=0)
    detections = true_positives + counts.false_positives.sum(axis=0) + counts.unmapped
    objects = counts.objects.sum()
    return (
        _ratio(2 * true_positives, detections + objects),
        _ratio(true_positives, detections),
        _ratio(true_positives, objects),
    )


def by_category(counts: F1Counts) -> np.ndarray:
    """F1 of each category, float64 [K, T]; nan without ground truth."""
    detections = counts.true_positives + counts.false_positives
    f1 = _ratio(2 * counts.true_positives, detections + counts.objects[:, None])
    return np.where(counts.objects[:, None] > 0, f1, np.nan)


def macro(counts: F1Counts, *, prompted_only: bool) -> np.ndarray:
    """Mean F1 over categories, float64 [T]; `prompted_only` leaves out categories without a true positive."""
    f1 = by_category(counts)
    kept = counts.true_positives > 0 if prompted_only else ~np.isnan(f1)
    return _ratio(np.where(kept, f1, 0.0).sum(axis=0), kept.sum(axis=0))


def summary(table: F1Table) -> F1Summary:
    """F1, precision and recall at IoU 0.5, at 0.95 and averaged over 0.50:0.95."""
    counts = table.counts()
    f1, precision, recall = micro(counts)
    in_macro = (counts.true_positives[:, 0] > 0) if table.prompted_only else (counts.objects > 0)
    return F1Summary(
        description=PROMPTED_ONLY if table.prompted_only else ALL_PREDICTIONS,
        micro=_at_iou(f1),
        macro=_at_iou(macro(counts, prompted_only=table.prompted_only)),
        precision=_at_iou(precision),
        recall=_at_iou(recall),
        true_positives_50=int(counts.true_positives[:, 0].sum()),
        false_positives_50=int(counts.false_positives[:, 0].sum() + counts.unmapped),
        false_negatives_50=int(counts.objects.sum() - counts.true_positives[:, 0].sum()),
        categories_in_macro_50=int(in_macro.sum()),
    )


def f1_per_image(table: F1Table, threshold: int = 0, *, empty: float) -> np.ndarray:
    """F1 of each image, float64 [I]; `empty` where the image has neither objects nor detections."""
    true_positives, false_positives, objects = table.per_image(threshold)
    total = true_positives + false_positives + objects
    return np.divide(2.0 * true_positives, total, out=np.full(len(total), empty), where=total > 0)


def _at_iou(values: np.ndarray) -> AtIoU:
    return AtIoU(iou_50=float(values[0]), iou_95=float(values[-1]), mean=float(values.mean()))


def _ratio(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    a = np.asarray(a, dtype=np.float64)
    b = np.broadcast_to(np.asarray(b, dtype=np.float64), a.shape)
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
