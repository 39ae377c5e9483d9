"""The types of eval.json: every field with its meaning and unit. Those of compare.json are in `compare_results`.

Both files are written from their types and read back through them, and their JSON schemas are generated from them.
AP, F1, precision, recall, scores and shares lie in [0, 1]. `null` means that the value is undefined, for example AP
of a category without ground truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from coordexp.evaluation.options import EvaluateOptions, ProtocolName
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json

EVAL_VERSION = 3

Count = Annotated[int, Meta(ge=0)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file, hexadecimal")]
Interval = Annotated[tuple[float, float] | None, Meta(description="95% interval [low, high]")]
Numbers = dict[str, float | None]
Curve = Annotated[list[float], Meta(min_length=101, max_length=101)]
ErrorType = Literal["duplicate", "localisation", "classification", "background", "unmapped"]
T = TypeVar("T", bound=msgspec.Struct)


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all result types: immutable, without unknown fields."""


class InputFile(Result):
    """A file that was read."""

    path: Annotated[str, Meta(description="path as given, relative to the working directory")]
    sha256: Sha256
    bytes: Annotated[Count, Meta(description="size of the file in bytes")]


class Software(Result):
    """The software of a process."""

    software: Annotated[dict[str, str], Meta(description="package versions")]
    revision: Annotated[dict[str, str | int | None], Meta(description="commit, and number of changed files")]
    code: Annotated[str, Meta(description="identity of the code (`runtime.code_identity`)")]


class PredictionsFile(InputFile):
    """The predictions that were scored."""

    format: Annotated[str, Meta(description="prediction format, `coordexp` for predictions.jsonl")]
    made_by: Annotated[list[Software] | None, Meta(description="software that predicted; null: unknown")] = None


class Inputs(Result):
    """The predictions and the annotations that they were scored against."""

    predictions: PredictionsFile
    annotations: InputFile


class Counts(Result):
    """How many images, objects and detections were scored, skipped or unusual."""

    images: Annotated[Count, Meta(description="images scored")]
    images_annotated: Annotated[Count, Meta(description="images in the annotation file")]
    images_without_record: Annotated[
        Count, Meta(description="annotated images that are not scored because they have no record")
    ]
    images_without_objects: Annotated[Count, Meta(description="scored images without a (non-crowd) object")]
    images_without_detections: Annotated[Count, Meta(description="scored images without a detection")]
    images_absent_from_results: Annotated[
        int | None, Meta(description="annotated images that COCO results do not mention; null for other formats")
    ]
    objects: Annotated[Count, Meta(description="annotated objects in the scored images, crowds excluded")]
    objects_without_area: Annotated[
        Count, Meta(description="annotations of zero width or height, crowds included, which no detection can match")
    ]
    objects_without_record: Annotated[Count, Meta(description="objects of the images without a record")]
    crowds: Annotated[Count, Meta(description="crowd annotations")]
    annotations_skipped: Annotated[
        dict[str, Count], Meta(description="entries of the annotation file that were left out, by reason")
    ]
    categories: Annotated[Count, Meta(description="categories of the annotation file")]
    categories_with_objects: Annotated[Count, Meta(description="categories with at least one object")]
    detections: Annotated[Count, Meta(description="detections read")]
    calibrated_detections: Annotated[Count, Meta(description="detections with calibrated scores")]
    unmapped_detections: Annotated[Count, Meta(description="detections whose description matches no category")]
    duplicates: Annotated[Count, Meta(description="detections that repeat a better one of the same image")]
    duplicate_rule: Annotated[str, Meta(description="when a detection counts as a duplicate")]
    boxes_outside_image: Annotated[Count, Meta(description="boxes that extend beyond the image")]
    boxes_without_area: Annotated[Count, Meta(description="predicted boxes of zero width or height")]
    answers_truncated: Annotated[Count, Meta(description="answers that reached the token limit")]
    answers_with_problems: Annotated[Count, Meta(description="answers that could not be parsed completely")]
    problems: Annotated[dict[str, Count], Meta(description="parsing problems by reason")]
    prompt_protocols: Annotated[dict[str, Count], Meta(description="answers by prompt protocol")]
    subset: Annotated[bool, Meta(description="true if annotated images are not scored")]
    subset_note: Annotated[str | None, Meta(description="which images are not scored, and why")]


class RenamedLabel(Result):
    """A description that was mapped to a category of another spelling."""

    desc: Annotated[str, Meta(description="description as predicted")]
    category: Annotated[str, Meta(description="name of the category")]
    how: Annotated[Literal["normalised", "synonym"], Meta(description="rule that mapped it")]
    count: Annotated[Count, Meta(description="detections with this description")]


class UnmappedLabel(Result):
    """A description without a category."""

    desc: Annotated[str, Meta(description="description as predicted")]
    why: Annotated[Literal["ambiguous", "unknown"], Meta(description="reason")]
    candidates: Annotated[list[str], Meta(description="categories that share an ambiguous description")]
    count: Annotated[Count, Meta(description="detections with this description")]


class LabelMappingResult(Result):
    """How free-text descriptions were mapped to categories."""

    detections: Annotated[dict[str, Count], Meta(description="detections by the rule that mapped them")]
    by_description: Annotated[dict[str, int | None], Meta(description="category id per description, null if unmapped")]
    renamed: list[RenamedLabel]
    unmapped: list[UnmappedLabel]


# --- eval.json: one protocol ---


class FixedAP(Result):
    """Fixed AP (Dave et al., 2021): LVIS AP without a limit per image."""

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


class F1Variants(Result):
    """F1 with and without predictions of categories that are absent from the image."""

    all_predictions: F1Summary
    prompted_only: F1Summary


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


class ExampleImage(Result):
    """One image and its detection counts at IoU 0.5."""

    image_id: int | str
    F1_50: float
    true_positives: Count
    false_positives: Count
    objects: Count


class ExampleError(Result):
    """One confident false positive."""

    image_id: int | str
    desc: str
    score: float
    bbox_px: Annotated[
        tuple[float, float, float, float], Meta(description="x, y, width, height in pixels of the source image")
    ]
    error: ErrorType


class Examples(Result):
    """Images worth viewing, under the first computed protocol at IoU 0.5."""

    protocol: ProtocolName
    best: list[ExampleImage]
    worst: list[ExampleImage]
    confident_errors: Annotated[list[ExampleError], Meta(description="false positives, highest score first")]
    false_positives_by_type: Annotated[dict[ErrorType, Count], Meta(description="all false positives by error type")]


class EvalResult(Result, kw_only=True):
    """eval.json: scores of one run on one split."""

    schema_version: Literal[3] = EVAL_VERSION
    dataset: str
    split: str
    inputs: Inputs
    options: EvaluateOptions
    software: Annotated[dict[str, str], Meta(description="package versions")]
    revision: Annotated[dict[str, str | int | None], Meta(description="commit, and number of changed files")]
    code: Annotated[str, Meta(description="identity of the evaluation code (`runtime.code_identity`)")]
    tie_rule: Annotated[str, Meta(description="order of detections with equal scores")]
    counts: Counts
    mapping: LabelMappingResult
    not_computed: Annotated[dict[str, str], Meta(description="requested protocols that were skipped, and why")]
    coco: ProtocolResult | None
    lvis: ProtocolResult | None
    examples: Examples

    @property
    def protocols(self) -> dict[ProtocolName, ProtocolResult]:
        """Results of the computed protocols, COCO first."""
        return {name: block for name in ("coco", "lvis") if (block := getattr(self, name)) is not None}


# --- reading and writing ---


def schema(kind: type[msgspec.Struct] = EvalResult) -> dict[str, Any]:
    """JSON schema (2020-12) of a result type."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}


def validated(result: T) -> T:
    """`result` as it would be read back; msgspec.ValidationError for a field of the wrong type or range."""
    return msgspec.convert(msgspec.to_builtins(result), type(result))


def write(path: str | Path, result: Result) -> None:
    """Write eval.json or compare.json atomically."""
    write_json(path, result)


def load_eval(path: str | Path) -> EvalResult:
    """Read eval.json; DataError if it is missing, of another version or invalid."""
    return load(path, EvalResult, "an eval.json", EVAL_VERSION, "evaluate again with this version of CoordExp")


def load(path: str | Path, kind: type[T], name: str, version: int, fix: str) -> T:
    """Read a result of type `kind`; DataError with `name` and `fix` if it is not one of this version."""
    content = read_json(path)
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != version:
        problem = f"not {name} of this version"
        raise DataError(located(problem, file=path, field="schema_version", expected=version, found=found, fix=fix))
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DataError(located(f"not {name}: {error}", file=path, fix=fix)) from error
