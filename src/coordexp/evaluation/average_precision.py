"""Average precision of matched detections under image weights, fast enough to resample.

With unit weights this equals COCOeval's AP at area "all" (tested); other weights give bootstrap replicates (how often
an image was drawn) and subsets (0 or 1).
"""

from __future__ import annotations

import numpy as np

from coordexp.evaluation.greedy_matching import Matches

RECALLS = np.linspace(0.0, 1.0, 101, endpoint=True)


class RankedMatches:
    """Matches prepared for computing AP under many image weightings.

    `pooled` ranks the detections of all categories in one list and adds `extra` false positives, the detections
    without a category, as (image index int64 [U], score float64 [U]).
    """

    def __init__(self, matches: Matches, *, pooled: bool = False, extra: tuple[np.ndarray, np.ndarray] | None = None):
        image, score, category = matches.image, matches.score, matches.category
        matched, ignored = matches.matched, matches.ignored
        counted = matches.object_counted
        self._object_image = matches.object_image[counted]
        self._object_group = matches.object_category[counted]
        self.num_groups = matches.num_categories
        if extra is not None:
            none = np.zeros((len(extra[0]), len(matches.thresholds)), dtype=bool)
            image, score = np.concatenate([image, extra[0]]), np.concatenate([score, extra[1]])
            category = np.concatenate([category, np.zeros_like(extra[0])])
            matched, ignored = np.concatenate([matched, none]), np.concatenate([ignored, none])
        if pooled:
            self.num_groups = 1
            self._object_group = np.zeros_like(self._object_group)
            # false positives first among equal scores: the pessimistic order
            order = np.lexsort((matched.sum(axis=1), -score))
            image, matched, ignored = image[order], matched[order], ignored[order]
            category = np.zeros(len(image), dtype=np.int64)
        self._image = image
        group_start = np.searchsorted(category, np.arange(self.num_groups + 1))
        index = np.arange(len(image), dtype=np.int32)
        self._counted = [index[~ignored[:, t]] for t in range(ignored.shape[1])]
        self._hits = [np.flatnonzero(matched[c, t]) for t, c in enumerate(self._counted)]
        self._group = [category[c][h] for c, h in zip(self._counted, self._hits, strict=True)]
        self._begin = [np.searchsorted(c, group_start[:-1]) for c in self._counted]
        self.num_thresholds = len(self._counted)

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """AP, float64 [groups, T], under image weights int64 [I]; nan for a group without (weighted) objects."""
        if weights is None:
            objects = np.bincount(self._object_group, minlength=self.num_groups)
        else:
            objects = np.bincount(self._object_group, weights[self._object_image], minlength=self.num_groups)
        out = np.full((self.num_groups, self.num_thresholds), np.nan)
        for t in range(self.num_thresholds):
            out[:, t] = self._at_threshold(t, weights, objects.astype(np.int64))
        return out

    def _at_threshold(self, t: int, weights: np.ndarray | None, objects: np.ndarray) -> np.ndarray:
        counted, hits, group = self._counted[t], self._hits[t], self._group[t]
        if weights is None:
            num_seen, hit_weight = np.arange(1, len(counted) + 1), np.ones(len(hits), dtype=np.int64)
        else:
            per_detection = weights[self._image[counted]]
            num_seen, hit_weight = np.cumsum(per_detection), per_detection[hits]
        before = np.concatenate([[0], num_seen])[self._begin[t]]  # detections of earlier groups
        all_hits = np.cumsum(hit_weight)
        first = np.searchsorted(group, np.arange(self.num_groups))
        seen = num_seen[hits] - before[group]
        true_positives = all_hits - np.concatenate([[0], all_hits])[first][group]
        precision = np.divide(true_positives, seen, out=np.zeros(len(true_positives)), where=seen > 0)
        # running maximum from the right within each group: an offset lifts every group above the later ones
        lift = 2.0 * (self.num_groups - 1 - group)
        best = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        # number of the 101 recall levels reached at each hit, and from it the number that the hit adds
        recall = np.divide(true_positives, objects[group], out=np.zeros(len(true_positives)), where=objects[group] > 0)
        reached = np.where(true_positives > 0, np.searchsorted(RECALLS, recall, "right"), 0)
        earlier = np.concatenate([[0], reached[:-1]])[: len(reached)]
        earlier[first[first < len(group)]] = 0
        total = np.bincount(group, best * (reached - earlier), minlength=self.num_groups)
        return np.where(objects > 0, total / len(RECALLS), np.nan)


def mean_ap(ap: np.ndarray) -> float:
    """Mean AP over the categories with ground truth; nan if no category has any."""
    kept = ap[~np.isnan(ap[:, 0])]
    return float(kept.mean()) if len(kept) else float("nan")
