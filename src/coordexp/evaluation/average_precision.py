"""Average precision of a match table under image weights: the slow library's number, fast enough to resample.

With all weights one this equals COCOeval's AP at area "all" (a test says so); other weights give bootstrap
replicates (how often a image was drawn) and subsets (0 or 1).
"""

from __future__ import annotations

import numpy as np

from coordexp.evaluation.greedy_matching import Matches

RECALLS = np.linspace(0.0, 1.0, 101, endpoint=True)


class RankedMatches:
    """A match table prepared for many weightings.

    `pooled` ranks the detections of all categories in one list, with `extra` false positives (image
    index int64 [U], score float64 [U]): the detections that have no category.
    """

    def __init__(self, matches: Matches, *, pooled: bool = False, extra: tuple[np.ndarray, np.ndarray] | None = None):
        image, score, category = matches.image, matches.score, matches.category
        matched, ignored = matches.matched, matches.ignored
        counted = matches.counts
        self._object_image = matches.object_image[counted]
        self._object_group = matches.object_category[counted]
        self.groups = matches.categories
        if extra is not None:
            none = np.zeros((len(extra[0]), len(matches.thresholds)), dtype=bool)
            image, score = np.concatenate([image, extra[0]]), np.concatenate([score, extra[1]])
            category = np.concatenate([category, np.zeros_like(extra[0])])
            matched, ignored = np.concatenate([matched, none]), np.concatenate([ignored, none])
        if pooled:
            self.groups = 1
            self._object_group = np.zeros_like(self._object_group)
            # equal scores: wrong ones first, so that no order can flatter
            order = np.lexsort((matched.sum(axis=1), -score))
            image, matched, ignored = image[order], matched[order], ignored[order]
            category = np.zeros(len(image), dtype=np.int64)
        self._image = image
        self._starts = np.searchsorted(category, np.arange(self.groups + 1))
        self._counted = [np.flatnonzero(~ignored[:, t]) for t in range(ignored.shape[1])]
        self._right = [np.flatnonzero(matched[c, t]) for t, c in enumerate(self._counted)]
        self._group = [category[c][r] for c, r in zip(self._counted, self._right, strict=True)]
        self._begin = [np.searchsorted(c, self._starts[:-1]) for c in self._counted]
        self.thresholds = len(self._counted)

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """AP float64 [groups, T]; nan where the weighted truth has no object. `weights` int64 [I]."""
        if weights is None:
            objects = np.bincount(self._object_group, minlength=self.groups)
        else:
            objects = np.bincount(self._object_group, weights[self._object_image], minlength=self.groups)
        out = np.full((self.groups, self.thresholds), np.nan)
        for t in range(self.thresholds):
            out[:, t] = self._one(t, weights, objects.astype(np.int64))
        return out

    def _one(self, t: int, weights: np.ndarray | None, objects: np.ndarray) -> np.ndarray:
        counted, right, group = self._counted[t], self._right[t], self._group[t]
        if weights is None:
            all_seen, gained = np.arange(1, len(counted) + 1), np.ones(len(right), dtype=np.int64)
        else:
            per_detection = weights[self._image[counted]]
            all_seen, gained = np.cumsum(per_detection), per_detection[right]
        before = np.concatenate([[0], all_seen])[self._begin[t]]  # detections ahead of each group
        hits = np.cumsum(gained)
        first = np.searchsorted(group, np.arange(self.groups))
        seen = all_seen[right] - before[group]
        own = hits - np.concatenate([[0], hits])[first][group]
        precision = np.divide(own, seen, out=np.zeros(len(own)), where=seen > 0)
        # running maximum from the right within each group: lift every group above those behind it
        lift = 2.0 * (self.groups - 1 - group)
        best = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        # how many of the 101 recalls are reached up to each hit, and so how many this hit brings
        recall = np.divide(own, objects[group], out=np.zeros(len(own)), where=objects[group] > 0)
        reached = np.where(own > 0, np.searchsorted(RECALLS, recall, "right"), 0)
        earlier = np.concatenate([[0], reached[:-1]])[: len(reached)]
        earlier[first[first < len(group)]] = 0
        total = np.bincount(group, best * (reached - earlier), minlength=self.groups)
        return np.where(objects > 0, total / len(RECALLS), np.nan)


def mean_ap(ap: np.ndarray) -> float:
    """Mean over the categories that have truth; nan when none has."""
    kept = ap[~np.isnan(ap[:, 0])]
    return float(kept.mean()) if len(kept) else float("nan")
