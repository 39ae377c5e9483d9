"""One evaluation protocol (COCO or LVIS) applied to one run: matches, AP, F1 counts and calibration."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from coordexp.evaluation import coco_lvis_ap, f1
from coordexp.evaluation.average_precision import RankedMatches, mean_ap
from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.greedy_matching import Matches, match, rank_in_group
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.options import ProtocolName
from coordexp.evaluation.pointing import pointing_accuracy
from coordexp.evaluation.presence import presence
from coordexp.evaluation.reliability import calibration, correctness
from coordexp.evaluation.result_types import CalibrationResult


class ScoredProtocol:
    """Ground truth, detections and their matches under one protocol; the input of every metric.

    `matches` holds every judged detection, `limited` only those within `max_dets`. `unmapped` are the indices of
    detections without a category that count as false positives: all of them under COCO, none under LVIS.
    """

    def __init__(self, name: ProtocolName, ground_truth: GroundTruth, detections: DetectionTable, max_dets: int):
        self.name = name
        self.ground_truth = ground_truth
        self.detections = detections
        self.max_dets = max_dets
        self.matches: Matches = match(ground_truth, detections, federated=name == "lvis")
        self.unmapped = np.flatnonzero(detections.category < 0) if name == "coco" else np.zeros(0, dtype=np.int64)
        unmapped_image = detections.image[self.unmapped]
        self.limited: Matches = self.matches.limited(self._within_max_dets())
        self.ranked = RankedMatches(self.limited)
        self.pooled = RankedMatches(self.limited, pooled=True, extra=(unmapped_image, detections.score[self.unmapped]))
        self.all_predictions = f1.F1Table(self.matches, unmapped_image)
        self.prompted_only = f1.F1Table(self.matches, unmapped_image, prompted_only=True)

    @cached_property
    def ap_scores(self) -> coco_lvis_ap.APScores:
        """AP and AR of boxes, as COCOeval or lvis-api computes them."""
        return self._ap("bbox")

    @cached_property
    def mask_scores(self) -> coco_lvis_ap.APScores:
        """AP and AR of polygons."""
        return self._ap("segm")

    @cached_property
    def values(self) -> dict[str, float]:
        """`statistic` with every image counted once."""
        return self.statistic(np.ones(self.ground_truth.num_images, dtype=np.int64))

    @property
    def pointing_accuracy(self) -> float | None:
        """Pointing accuracy of box centres."""
        return pointing_accuracy(self.ground_truth, self.detections)

    @property
    def presence(self) -> dict[str, float | None]:
        """False positives on absent categories, and correlation of predicted with actual presence."""
        return presence(self.ground_truth, self.detections, federated=self.name == "lvis")

    def statistic(self, weights: np.ndarray) -> dict[str, float]:
        """The metrics that get confidence intervals, under image weights (int64 [I]); nan where undefined."""
        ap = self.ranked.average_precision(weights)
        counts = self.all_predictions.counts(weights)
        score, precision, recall = f1.micro(counts)
        return {
            "AP": mean_ap(ap),
            "AP50": mean_ap(ap[:, :1]),
            "AP75": mean_ap(ap[:, 5:6]),
            "F1_50_micro": float(score[0]),
            "F1_50_macro": float(f1.macro(counts, prompted_only=False)[0]),
            "F1_micro": float(score.mean()),
            "precision_50": float(precision[0]),
            "recall_50": float(recall[0]),
        }

    def calibration(self) -> CalibrationResult:
        """Calibration of the scores as probabilities of a match at IoU 0.5."""
        rows, correct = correctness(self.matches, self.unmapped)
        return calibration(self.detections.score[rows], correct)

    def _ap(self, iou_type: coco_lvis_ap.IoUType) -> coco_lvis_ap.APScores:
        compute = coco_lvis_ap.coco if self.name == "coco" else coco_lvis_ap.lvis
        return compute(self.ground_truth, self.detections, self.max_dets, iou_type)

    def _within_max_dets(self) -> np.ndarray:
        """Which of `matches` are among the best `max_dets` (bool [D])."""
        if self.name == "coco":
            return self.matches.rank < self.max_dets
        mapped = np.flatnonzero(self.detections.category >= 0)
        rank = rank_in_group(self.detections.image[mapped])
        return np.isin(self.matches.row, mapped[rank < self.max_dets])
