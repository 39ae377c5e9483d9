"""The types of eval.json: every field with its meaning and unit.

The types of its `coco` and `lvis` blocks are in `result_types`, those of compare.json in `compare_results`. Both files
are written from their types and read back through them, and their JSON schemas are generated from them. AP, F1,
precision, recall, scores and shares lie in [0, 1]. `null` means that the value is undefined, for example AP of a
category without ground truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from coordexp.evaluation.options import EvaluateOptions, ProtocolName
from coordexp.evaluation.phrase_results import PhraseResult
from coordexp.evaluation.result_types import Count, ErrorType, ProtocolResult, Result, Sha256
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json

EVAL_VERSION = 5

T = TypeVar("T", bound=msgspec.Struct)


class InputFile(Result):
    """A file that was read."""

    path: Annotated[
        str, Meta(description="path relative to the working directory or to this file, or the name after `.../`")
    ]
    sha256: Sha256
    bytes: Annotated[Count, Meta(description="size of the file in bytes")]


class Software(Result):
    """The software that a stage ran with."""

    software: Annotated[dict[str, str], Meta(description="package versions")]
    revision: Annotated[dict[str, str | int | None], Meta(description="Git commit, and number of files changed since")]
    code: Annotated[str, Meta(description="identity of the code (`runtime.code_identity`)")]


class PredictionSoftware(Software):
    """The software that made predictions."""

    score_options: Annotated[
        dict[str, Any] | None, Meta(description="options of prediction that determine what a score means")
    ] = None


class PredictionsFile(InputFile):
    """The predictions that were scored."""

    format: Annotated[str, Meta(description="prediction format, `coordexp` for predictions.jsonl")]
    made_by: Annotated[
        list[PredictionSoftware] | None, Meta(description="software that made the predictions; null: unknown")
    ] = None


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
    unmapped_detections: Annotated[
        Count, Meta(description="detections whose description matches no category, or no phrase that was asked")
    ]
    duplicates: Annotated[Count, Meta(description="detections that repeat a higher-scoring one of the same image")]
    duplicate_rule: Annotated[str, Meta(description="when a detection counts as a duplicate")]
    near_duplicates: Annotated[Count, Meta(description="same as `duplicates` with a lower IoU; includes `duplicates`")]
    near_duplicate_rule: Annotated[str, Meta(description="when a detection counts as a near-duplicate")]
    near_duplicate_pairs: Annotated[
        Count, Meta(description="pairs of detections of one image and label with the IoU of `near_duplicate_rule`")
    ]
    near_duplicate_objects: Annotated[
        Count, Meta(description="pairs of annotated objects of one image and category with that IoU, without crowds")
    ]
    boxes_outside_image: Annotated[Count, Meta(description="boxes that extend beyond the image")]
    boxes_without_area: Annotated[Count, Meta(description="predicted boxes of zero width or height")]
    answers_truncated: Annotated[Count, Meta(description="answers that reached the token limit")]
    answers_with_problems: Annotated[Count, Meta(description="answers that could not be parsed completely")]
    problems: Annotated[dict[str, Count], Meta(description="parsing problems by reason")]
    prompt_protocols: Annotated[dict[str, Count], Meta(description="answers by prompt protocol")]
    subset: Annotated[bool, Meta(description="true if annotated images are not scored")]
    subset_note: Annotated[str | None, Meta(description="which images are not scored, and why")]
    slices: Annotated[Count, Meta(description="slices predicted, over all images; 0 if none was sliced")] = 0
    merged_detections: Annotated[
        Count, Meta(description="detections merged into one of another slice; not part of `detections`")
    ] = 0


class RenamedLabel(Result):
    """A description that was mapped to a category whose name is spelled differently."""

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


# --- eval.json: the file ---


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
    """Images worth viewing, under the first computed protocol at IoU 0.5; empty for answers to phrases."""

    protocol: ProtocolName | Literal["phrases"]
    best: list[ExampleImage]
    worst: list[ExampleImage]
    confident_errors: Annotated[list[ExampleError], Meta(description="false positives, highest score first")]
    false_positives_by_type: Annotated[dict[ErrorType, Count], Meta(description="all false positives by error type")]


class EvalResult(Result, kw_only=True):
    """eval.json: scores of one run on one split."""

    schema_version: Literal[5] = EVAL_VERSION
    dataset: str
    split: Annotated[str | None, Meta(description="evaluated split; null: unknown")]
    inputs: Inputs
    options: EvaluateOptions
    software: Annotated[dict[str, str], Meta(description="package versions")]
    revision: Annotated[dict[str, str | int | None], Meta(description="Git commit, and number of files changed since")]
    code: Annotated[str, Meta(description="identity of the evaluation code (`runtime.code_identity`)")]
    tie_rule: Annotated[str, Meta(description="order of detections with equal scores")]
    counts: Counts
    mapping: LabelMappingResult
    not_computed: Annotated[dict[str, str], Meta(description="requested protocols that were skipped, and why")]
    coco: ProtocolResult | None
    lvis: ProtocolResult | None
    examples: Examples
    phrases: Annotated[
        PhraseResult | None, Meta(description="answers to phrases (`predict.protocol: phrases`), else null")
    ] = None

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
