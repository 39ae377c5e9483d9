"""F1 of all answers as given: no score threshold, one number for each IoU threshold, two protocols.

`honest`: every detection counts, so do unmapped ones where the truth is exhaustive; macro is the mean over
every category that has truth, zeros kept. `usual`: what published tables often do, kept for comparison:
predictions of categories that the image does not hold are dropped (as if the prompt had named the
image's categories), unmapped ones too, and macro leaves out categories without a single hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coordexp.evaluation.greedy_matching import Matches

HONEST = (
    "all detections count, unmapped descriptions are false positives where the truth is exhaustive; "
    "macro over every category with truth, zeros kept"
)
USUAL = (
    "only detections of categories that the image's truth holds, unmapped ones dropped; "
    "macro over categories with at least one hit at the threshold"
)


@dataclass(frozen=True)
class Counts:
    """Hits, false alarms and objects by category: float64 [K, T], [K, T], [K]; `unmapped` has no category."""

    hits: np.ndarray
    alarms: np.ndarray
    objects: np.ndarray
    unmapped: float


class F1Table:
    """Counts of a match table under image weights. `unmapped` is the image index of unmapped detections."""

    def __init__(self, matches: Matches, unmapped: np.ndarray, *, usual: bool = False):
        present = np.unique(matches.object_image[matches.counts] * matches.categories + _counted(matches))
        keep = np.ones(len(matches.row), dtype=bool)
        if usual:
            keep = np.isin(matches.image * matches.categories + matches.category, present)
        self.categories, self.images = matches.categories, matches.images
        self._image, self._category = matches.image[keep], matches.category[keep]
        self._hits = [np.flatnonzero(flags) for flags in matches.matched[keep].T]
        self._ignored = [np.flatnonzero(flags) for flags in matches.ignored[keep].T]
        self._object_image = matches.object_image[matches.counts]
        self._object_category = _counted(matches)
        self._unmapped = unmapped[:0] if usual else unmapped
        self.prompted_only = usual

    def counts(self, weights: np.ndarray | None = None) -> Counts:
        """Counts with each image taken `weights` (int64 [I]) times, once each without."""
        weights = np.ones(self.images, dtype=np.int64) if weights is None else weights
        own = weights[self._image]
        given = np.bincount(self._category, own, minlength=self.categories)
        hits = self._sum(self._hits, own)
        return Counts(
            hits=hits,
            alarms=given[:, None] - hits - self._sum(self._ignored, own),
            objects=np.bincount(self._object_category, weights[self._object_image], minlength=self.categories),
            unmapped=float(weights[self._unmapped].sum()),
        )

    def _sum(self, rows: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
        columns = [np.bincount(self._category[r], weight[r], minlength=self.categories) for r in rows]
        return np.stack(columns, axis=1)

    def per_image(self, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, false alarms and objects of each image at threshold `at`; int64 [I] each."""
        hits, ignored = (
            np.bincount(self._image[rows[at]], minlength=self.images) for rows in (self._hits, self._ignored)
        )
        alarms = np.bincount(self._image, minlength=self.images) - hits - ignored
        alarms += np.bincount(self._unmapped, minlength=self.images)
        return hits, alarms, np.bincount(self._object_image, minlength=self.images)


def micro(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, precision and recall over all objects, float64 [T]; 0 where nothing is there to count."""
    hits = counts.hits.sum(axis=0)
    given = hits + counts.alarms.sum(axis=0) + counts.unmapped
    objects = counts.objects.sum()
    return _ratio(2 * hits, given + objects), _ratio(hits, given), _ratio(hits, objects)


def by_category(counts: Counts) -> np.ndarray:
    """F1 of each category, float64 [K, T]; nan where there is no truth."""
    f1 = _ratio(2 * counts.hits, counts.hits + counts.alarms + counts.objects[:, None])
    return np.where(counts.objects[:, None] > 0, f1, np.nan)


def macro(counts: Counts, *, usual: bool) -> np.ndarray:
    """Mean F1 over categories, float64 [T]; `usual` leaves out categories without a hit."""
    f1 = by_category(counts)
    kept = counts.hits > 0 if usual else ~np.isnan(f1)
    return _ratio(np.where(kept, f1, 0.0).sum(axis=0), kept.sum(axis=0))


def summary(table: F1Table) -> dict[str, Any]:
    """The block of eval.json: F1, precision and recall at .5, .95 and the mean of .5:.95."""
    counts = table.counts()
    f1, precision, recall = micro(counts)
    kept = (counts.hits[:, 0] > 0) if table.prompted_only else (counts.objects > 0)
    return {
        "description": USUAL if table.prompted_only else HONEST,
        "micro": _three(f1),
        "macro": _three(macro(counts, usual=table.prompted_only)),
        "precision": _three(precision),
        "recall": _three(recall),
        "true_positives_at_0.50": int(counts.hits[:, 0].sum()),
        "false_positives_at_0.50": int(counts.alarms[:, 0].sum() + counts.unmapped),
        "false_negatives_at_0.50": int(counts.objects.sum() - counts.hits[:, 0].sum()),
        "categories_in_macro_at_0.50": int(kept.sum()),
    }


def _three(values: np.ndarray) -> dict[str, float]:
    return {"0.50": float(values[0]), "0.95": float(values[-1]), "0.50:0.95": float(values.mean())}


def _ratio(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    a = np.asarray(a, dtype=np.float64)
    b = np.broadcast_to(np.asarray(b, dtype=np.float64), a.shape)
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _counted(matches: Matches) -> np.ndarray:
    return matches.object_category[matches.counts]
