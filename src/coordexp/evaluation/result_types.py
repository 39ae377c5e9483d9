"""The types of the `coco` and `lvis` blocks of eval.json, and the base of all result types."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

Count = Annotated[int, Meta(ge=0)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file, hexadecimal")]
Interval = Annotated[tuple[float, float] | None, Meta(description="95% interval [low, high]")]
Numbers = dict[str, float | None]
Curve = Annotated[list[float], Meta(min_length=101, max_length=101)]
ErrorType = Literal["duplicate", "localisation", "classification", "background", "unmapped"]


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all result types: immutable, without unknown fields."""


class FixedAP(Result):
    """Fixed AP (Dave et al., 2021): LVIS AP without a limit on detections per image."""

    description: str
    metrics: Annotated[Numbers, Meta(description="AP by name")]


class MaskAP(Result):
    """AP of the predicted polygons, by mask IoU."""

    metrics: Annotated[Numbers, Meta(description="AP and AR by name")]


class PooledAP(Result):
    """AP of one ranked list of all detections, over all categories."""

    description: str
    AP: Annotated[float | None, Meta(description="mean over IoU 0.50:0.95")]
    AP50: Annotated[float | None, Meta(description="at IoU 0.5")]
    unmapped_false_positives: Annotated[
        Count, Meta(description="unmapped detections, which count as false positives in coco only")
    ]


class ConfidenceIntervals(Result):
    """Bootstrap intervals of the headline metrics, resampling images."""

    description: str
    replicates: Annotated[Count, Meta(description="bootstrap replicates; 0: no intervals")]
    values: Annotated[dict[str, Interval], Meta(description="interval by metric name")]


class AtIoU(Result):
    """One quantity at IoU 0.5, at 0.95, and its mean over 0.50:0.95."""

    iou_50: float = field(name="0.50")
    iou_95: float = field(name="0.95")
    mean: float = field(name="0.50:0.95")


class F1Summary(Result):
    """F1, precision and recall of the answers as given, without a score threshold."""

    description: str
    micro: Annotated[AtIoU, Meta(description="F1 over all objects")]
    macro: Annotated[AtIoU, Meta(description="mean F1 over categories")]
    precision: AtIoU
    recall: AtIoU
    true_positives_50: Annotated[Count, Meta(description="true positives at IoU 0.5")]
    false_positives_50: Annotated[Count, Meta(description="false positives at IoU 0.5")]
    false_negatives_50: Annotated[Count, Meta(description="objects without a match at IoU 0.5")]
    categories_in_macro_50: Annotated[Count, Meta(description="categories in the macro mean at IoU 0.5")]


class PublishedF1(Result):
    """F1 as the scorer of the Rex-Omni and LocateAnything tables computes it (`evaluation.published_f1`)."""

    description: str
    f1: Annotated[AtIoU, Meta(description="F1 of mean precision and mean recall")]
    precision: Annotated[
        AtIoU,
        Meta(
            description="mean over the categories where it is positive; a category without a true positive takes the "
            "value of the previous category"
        ),
    ]
    recall: Annotated[AtIoU, Meta(description="mean over the categories where it is positive")]


class F1Variants(Result):
    """F1 with and without predictions of categories that are absent from the image."""

    all_predictions: F1Summary
    prompted_only: F1Summary
    published: Annotated[PublishedF1, Meta(description="only for comparing with tables that use this scorer")]


class ReliabilityBin(Result):
    """Detections with a score in (low, high]."""

    low: float
    high: float
    count: Annotated[Count, Meta(description="detections in the bin")]
    mean_score: Annotated[float | None, Meta(description="mean score")]
    precision: Annotated[float | None, Meta(description="fraction that match an object at IoU 0.5")]


class CalibrationResult(Result):
    """How well scores agree with the probability of a match at IoU 0.5."""

    ece: Annotated[float | None, Meta(description="expected calibration error")]
    mce: Annotated[float | None, Meta(description="maximum calibration error over bins")]
    brier: Annotated[float | None, Meta(description="Brier score")]
    constant: Annotated[bool | None, Meta(description="true if all scores are equal")]
    bins: list[ReliabilityBin]
    detections: Annotated[Count, Meta(description="detections judged")]
    reason: Annotated[str | None, Meta(description="why nothing could be computed")]


class PrecisionCurves(Result):
    """Precision at recall 0, 0.01, ..., 1, mean over categories with ground truth."""

    iou_50: Curve = field(name="0.50")
    iou_75: Curve = field(name="0.75")
    mean: Curve = field(name="0.50:0.95")


class SizeRow(Result):
    """Objects of one size class (COCO limits)."""

    size: Literal["small", "medium", "large"]
    area_px: Annotated[tuple[float, float | None], Meta(description="area in square pixels of the source image")]
    objects: Count
    AP: float | None
    recall_50: Annotated[float | None, Meta(description="recall at IoU 0.5, any number of detections")]
    recall_75: Annotated[float | None, Meta(description="recall at IoU 0.75, any number of detections")]
    recall: Annotated[float | None, Meta(description="mean recall over IoU 0.50:0.95")]


class DensityRow(Result):
    """Images with a given number of objects."""

    objects_per_image: Annotated[str, Meta(description="range of objects per image, inclusive")]
    images: Count
    objects: Count
    true_positives_50: Annotated[Count, Meta(description="true positives at IoU 0.5")]
    false_positives_50: Annotated[Count, Meta(description="false positives at IoU 0.5")]
    AP: float | None
    AP50: float | None
    precision_50: float
    recall_50: float | None
    F1_50: float | None


class FrequencyRow(Result):
    """LVIS categories of one frequency class."""

    frequency: Literal["rare", "common", "frequent"]
    categories: Annotated[Count, Meta(description="categories with ground truth")]
    objects: Count
    AP: float | None
    F1_50_macro: float | None


class CategoryRow(Result):
    """One category with ground truth or detections."""

    id: int
    name: str
    frequency: Annotated[str | None, Meta(description="LVIS frequency: r, c or f")]
    objects: Count
    detections: Count
    AP: float | None
    AP50: float | None
    F1_50: float | None


class ProtocolCounts(Result):
    """Detections that a protocol leaves out of its numbers."""

    not_judged: Annotated[
        Count, Meta(description="detections of categories not verified for the image, or without area (lvis)")
    ]
    ignored_50: Annotated[
        Count, Meta(description="neither right nor wrong at IoU 0.5: matched to a crowd, or not exhaustively annotated")
    ]
    over_max_dets: Annotated[Count, Meta(description="detections beyond max_dets")]


class ProtocolResult(Result):
    """All results under one protocol (coco or lvis)."""

    description: str
    max_dets: Annotated[Count, Meta(description="detections scored per image (lvis) or image and category (coco)")]
    metrics: Annotated[Numbers, Meta(description="every registered metric by name (`evaluation.metrics.METRICS`)")]
    metric_descriptions: Annotated[dict[str, str], Meta(description="what each metric measures")]
    intervals: ConfidenceIntervals
    f1: F1Variants
    calibration: CalibrationResult
    ap_by_iou: Annotated[Numbers, Meta(description="AP per IoU threshold")]
    pooled: PooledAP
    fixed_ap: Annotated[FixedAP | None, Meta(description="lvis only")]
    segm: Annotated[MaskAP | None, Meta(description="null if no polygon was predicted")]
    counts: ProtocolCounts
    by_size: list[SizeRow]
    by_density: list[DensityRow]
    by_frequency: Annotated[list[FrequencyRow], Meta(description="lvis only")]
    by_category: list[CategoryRow]
    curves: PrecisionCurves
