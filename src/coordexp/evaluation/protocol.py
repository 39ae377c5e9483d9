"""Everything that one protocol (`coco` or `lvis`) says about a run: the block of that name in eval.json."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from coordexp.evaluation import breakdowns as tables
from coordexp.evaluation import coco_lvis_ap as engine
from coordexp.evaluation import error_types as mistakes
from coordexp.evaluation import f1
from coordexp.evaluation.average_precision import RankedMatches, mean_ap
from coordexp.evaluation.bootstrap import INTERVALS, interval, replicates
from coordexp.evaluation.detections import Detections
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS, match
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.reliability import calibration, verdicts

Name = Literal["coco", "lvis"]
DESCRIPTIONS = {
    "coco": "COCOeval: exhaustive truth, at most {max_dets} detections a image and category",
    "lvis": "lvis-api: federated truth, the {max_dets} best detections of a image over all categories",
}


class Protocol:
    """Matches and tables of one protocol; `unmapped` holds the rows without a category that count as wrong."""

    def __init__(self, name: Name, ground_truth: GroundTruth, detections: Detections, max_dets: int):
        self.name, self.ground_truth, self.detections, self.max_dets = name, ground_truth, detections, max_dets
        self.matches = match(ground_truth, detections, federated=name == "lvis")
        self.unmapped = np.flatnonzero(detections.category < 0) if name == "coco" else np.zeros(0, dtype=np.int64)
        unmapped_image = detections.image[self.unmapped]
        self.limited = self.matches.limited(self._within_limit())
        self.ranked = RankedMatches(self.limited)
        self.pooled = RankedMatches(self.limited, pooled=True, extra=(unmapped_image, detections.score[self.unmapped]))
        self.all_predictions = f1.F1Table(self.matches, unmapped_image)
        self.prompted_only = f1.F1Table(self.matches, unmapped_image, usual=True)

    def statistic(self, weights: np.ndarray) -> dict[str, float]:
        """The numbers that get an interval, under image weights (int64 [I]); nan where undefined."""
        ap = self.ranked.average_precision(weights)
        counts = self.all_predictions.counts(weights)
        score, precision, recall = f1.micro(counts)
        return {
            "AP": mean_ap(ap),
            "AP50": mean_ap(ap[:, :1]),
            "AP75": mean_ap(ap[:, 5:6]),
            "F1_50_micro": float(score[0]),
            "F1_50_macro": float(f1.macro(counts, usual=False)[0]),
            "F1_micro": float(score.mean()),
            "precision_50": float(precision[0]),
            "recall_50": float(recall[0]),
        }

    def scores(self) -> engine.Scores:
        """The headline numbers by the engine."""
        run = engine.coco if self.name == "coco" else engine.lvis
        return run(self.ground_truth, self.detections, self.max_dets)

    def calibration(self) -> dict[str, Any]:
        """How far the scores can be trusted as probabilities of a hit at IoU .5."""
        rows, right = verdicts(self.matches, self.unmapped)
        return calibration(self.detections.score[rows], right)

    def _within_limit(self) -> np.ndarray:
        if self.name == "coco":
            return self.matches.rank < self.max_dets
        mapped = np.flatnonzero(self.detections.category >= 0)
        place = engine.place_in_group(self.detections.image[mapped])
        return np.isin(self.matches.row, mapped[place < self.max_dets])


def block(protocol: Protocol, *, bootstrap: int, seed: int) -> dict[str, Any]:
    """The protocol's block of eval.json."""
    ground_truth, detections, matches = protocol.ground_truth, protocol.detections, protocol.matches
    scores = protocol.scores()
    values = protocol.statistic(np.ones(ground_truth.images, dtype=np.int64))
    drawn = replicates(protocol.statistic, ground_truth.images, bootstrap if ground_truth.images else 0, seed)
    result: dict[str, Any] = {
        "description": DESCRIPTIONS[protocol.name].format(max_dets=protocol.max_dets),
        "max_dets": protocol.max_dets,
        "metrics": scores.metrics,
    }
    if protocol.name == "lvis":
        result["fixed_ap"] = {
            "description": f"{engine.FIXED_AP_PER_CATEGORY} best detections of each category, no limit for a image",
            "metrics": engine.lvis_fixed(ground_truth, detections).metrics,
        }
    pooled = protocol.pooled.average_precision()
    by_iou = protocol.ranked.average_precision()
    result |= {
        "ap_by_iou": {
            f"{iou:.2f}": tables.none_if_nan(mean_ap(by_iou[:, t : t + 1])) for t, iou in enumerate(IOU_THRESHOLDS)
        },
        "pooled": {
            "description": "one ranked list over all categories; unmapped descriptions are false positives"
            + ("" if protocol.name == "coco" else " in coco only"),
            "AP": tables.none_if_nan(mean_ap(pooled)),
            "AP50": tables.none_if_nan(mean_ap(pooled[:, :1])),
            "unmapped_false_positives": len(protocol.unmapped),
        },
        "intervals": {
            "description": f"{INTERVALS}, {bootstrap} replicates, seed {seed}",
            "replicates": bootstrap,
            "values": {name: interval(values[name], replicate) for name, replicate in drawn.items()},
        },
        "f1": {
            "all_predictions": f1.summary(protocol.all_predictions),
            "prompted_only": f1.summary(protocol.prompted_only),
        },
        "calibration": protocol.calibration(),
        "curves": {name: np.round(values, 6).tolist() for name, values in scores.curves.items()},
        "by_size": tables.by_size(ground_truth, matches, scores),
        "by_density": tables.by_density(ground_truth, protocol.ranked, protocol.all_predictions),
        "by_frequency": tables.by_frequency(ground_truth, protocol.all_predictions, scores)
        if protocol.name == "lvis"
        else [],
        "by_category": tables.by_category(ground_truth, matches, protocol.all_predictions, scores),
        "counts": {
            "not_judged": matches.unjudged,
            "ignored_50": int(matches.ignored[:, 0].sum()),
            "over_max_dets": len(matches.row) - len(protocol.limited.row),
        },
    }
    if detections.poly:
        run = engine.coco if protocol.name == "coco" else engine.lvis
        result["segm"] = {"metrics": run(ground_truth, detections, protocol.max_dets, "segm").metrics}
    return result


def images(protocol: Protocol, count: int) -> dict[str, Any]:
    """Images to look at, by F1 at IoU .5, and the most confident false positives with what is wrong."""
    ground_truth, detections = protocol.ground_truth, protocol.detections
    hits, alarms, objects = protocol.all_predictions.per_image(0)
    f1_50 = np.divide(2 * hits, hits + alarms + objects, out=np.zeros(len(hits)), where=hits + alarms + objects > 0)
    shown = np.flatnonzero(hits + alarms + objects > 0)
    best = shown[np.lexsort((shown, -objects[shown], -f1_50[shown]))]
    best = best[hits[best] > 0][:count]
    worst = shown[np.lexsort((shown, -(objects + alarms)[shown], f1_50[shown]))][:count]
    rows, kind = mistakes.false_positives(ground_truth, detections, protocol.matches, protocol.unmapped)
    order = np.lexsort((rows, -detections.score[rows]))[:count]

    def entry(i: int) -> dict[str, Any]:
        numbers = {"F1_50": float(f1_50[i]), "hits": int(hits[i]), "false_positives": int(alarms[i])}
        return {"image_id": ground_truth.image_ids[i], **numbers, "objects": int(objects[i])}

    wrong = [
        {
            "image_id": ground_truth.image_ids[detections.image[row]],
            "desc": detections.descriptions[detections.desc[row]],
            "score": float(detections.score[row]),
            "bbox_px": detections.box[row].tolist(),
            "kind": mistakes.KINDS[k],
        }
        for row, k in zip(rows[order], kind[order], strict=True)
    ]
    tally = np.bincount(kind, minlength=len(mistakes.KINDS))
    return {
        "protocol": protocol.name,
        "best": [entry(i) for i in best],
        "worst": [entry(i) for i in worst],
        "confident_wrong": wrong,
        "false_positives_by_kind": dict(zip(mistakes.KINDS, tally.tolist(), strict=True)),
    }
