"""Assembles the results of one protocol: the `coco` and `lvis` blocks and the examples of eval.json."""

from __future__ import annotations

import numpy as np

from coordexp.evaluation import breakdowns, coco_lvis_ap, f1
from coordexp.evaluation.average_precision import mean_ap
from coordexp.evaluation.bootstrap import INTERVALS, interval, replicates
from coordexp.evaluation.breakdowns import none_if_nan
from coordexp.evaluation.error_types import ERROR_TYPES, false_positives
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS
from coordexp.evaluation.metrics import compute_metrics
from coordexp.evaluation.protocol import ScoredProtocol
from coordexp.evaluation.published_f1 import published_f1
from coordexp.evaluation.result_types import (
    ConfidenceIntervals,
    F1Variants,
    FixedAP,
    MaskAP,
    PooledAP,
    ProtocolCounts,
    ProtocolResult,
)
from coordexp.evaluation.results import ExampleError, ExampleImage, Examples

DESCRIPTIONS = {
    "coco": "COCOeval: exhaustive annotations, at most {max_dets} detections per image and category",
    "lvis": "lvis-api: federated annotations, the {max_dets} best detections per image over all categories",
}


def protocol_result(protocol: ScoredProtocol, *, bootstrap: int, seed: int) -> ProtocolResult:
    """All results of one protocol; `bootstrap` replicates for the intervals."""
    ground_truth, matches, scores = protocol.ground_truth, protocol.matches, protocol.ap_scores
    metrics, descriptions = compute_metrics(protocol)
    by_iou = protocol.ranked.average_precision()
    lvis = protocol.name == "lvis"
    return ProtocolResult(
        description=DESCRIPTIONS[protocol.name].format(max_dets=protocol.max_dets),
        max_dets=protocol.max_dets,
        metrics=metrics,
        metric_descriptions=descriptions,
        intervals=_intervals(protocol, bootstrap, seed),
        f1=F1Variants(
            all_predictions=f1.summary(protocol.all_predictions),
            prompted_only=f1.summary(protocol.prompted_only),
            published=published_f1(ground_truth, protocol.detections, federated=lvis),
        ),
        calibration=protocol.calibration(),
        ap_by_iou={f"{iou:.2f}": none_if_nan(mean_ap(by_iou[:, t : t + 1])) for t, iou in enumerate(IOU_THRESHOLDS)},
        pooled=_pooled(protocol),
        fixed_ap=_fixed_ap(protocol) if lvis else None,
        segm=MaskAP(metrics=protocol.mask_scores.metrics) if protocol.detections.poly else None,
        counts=ProtocolCounts(
            not_judged=matches.num_not_judged,
            ignored_50=int(matches.ignored[:, 0].sum()),
            over_max_dets=len(matches.row) - len(protocol.limited.row),
        ),
        by_size=breakdowns.by_size(ground_truth, matches, scores),
        by_density=breakdowns.by_density(ground_truth, protocol.ranked, protocol.all_predictions),
        by_frequency=breakdowns.by_frequency(ground_truth, protocol.all_predictions, scores) if lvis else [],
        by_category=breakdowns.by_category(ground_truth, matches, protocol.all_predictions, scores),
        curves=scores.curves,
    )


def examples(protocol: ScoredProtocol, count: int) -> Examples:
    """The `count` best and worst images by F1 at IoU 0.5, and the `count` most confident false positives."""
    ground_truth, detections = protocol.ground_truth, protocol.detections
    true_positives, wrong, objects = protocol.all_predictions.per_image(0)
    f1_50 = f1.f1_per_image(protocol.all_predictions, empty=0.0)
    shown = np.flatnonzero(true_positives + wrong + objects > 0)
    best = shown[np.lexsort((shown, -objects[shown], -f1_50[shown]))]
    best = best[true_positives[best] > 0][:count]
    worst = shown[np.lexsort((shown, -(objects + wrong)[shown], f1_50[shown]))][:count]
    rows, error = false_positives(ground_truth, detections, protocol.matches, protocol.unmapped)
    order = np.lexsort((rows, -detections.score[rows]))[:count]

    def image(i: int) -> ExampleImage:
        return ExampleImage(
            image_id=ground_truth.image_ids[i],
            F1_50=float(f1_50[i]),
            true_positives=int(true_positives[i]),
            false_positives=int(wrong[i]),
            objects=int(objects[i]),
        )

    return Examples(
        protocol=protocol.name,
        best=[image(i) for i in best],
        worst=[image(i) for i in worst],
        confident_errors=[
            ExampleError(
                image_id=ground_truth.image_ids[detections.image[row]],
                desc=detections.descriptions[detections.desc[row]],
                score=float(detections.score[row]),
                bbox_px=tuple(detections.box[row].tolist()),
                error=ERROR_TYPES[e],
            )
            for row, e in zip(rows[order], error[order], strict=True)
        ],
        false_positives_by_type=dict(
            zip(ERROR_TYPES, np.bincount(error, minlength=len(ERROR_TYPES)).tolist(), strict=True)
        ),
    )


def _intervals(protocol: ScoredProtocol, bootstrap: int, seed: int) -> ConfidenceIntervals:
    num_images = protocol.ground_truth.num_images
    drawn = replicates(protocol.statistic, num_images, bootstrap if num_images else 0, seed)
    return ConfidenceIntervals(
        description=f"{INTERVALS}, {bootstrap} replicates, seed {seed}",
        replicates=bootstrap,
        values={name: interval(protocol.values[name], values) for name, values in drawn.items()},
    )


def _pooled(protocol: ScoredProtocol) -> PooledAP:
    ap = protocol.pooled.average_precision()
    description = "one ranked list over all categories"
    if protocol.name == "coco":
        description += "; unmapped descriptions are false positives"
    return PooledAP(
        description=description,
        AP=none_if_nan(mean_ap(ap)),
        AP50=none_if_nan(mean_ap(ap[:, :1])),
        unmapped_false_positives=len(protocol.unmapped),
    )


def _fixed_ap(protocol: ScoredProtocol) -> FixedAP:
    return FixedAP(
        description=f"{coco_lvis_ap.FIXED_AP_PER_CATEGORY:,} best detections per category, no limit per image",
        metrics=coco_lvis_ap.lvis_fixed(protocol.ground_truth, protocol.detections).metrics,
    )
