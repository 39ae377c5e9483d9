"""Scores predictions against the annotations of the benchmark: from predictions.jsonl to eval.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from coordexp.evaluation import results
from coordexp.evaluation.detections import TIE_RULE, AnswerStats, DetectionTable, collect_detections
from coordexp.evaluation.error_types import DUPLICATE_IOU, NEAR_DUPLICATE_IOU, annotated_near_pairs, duplicates
from coordexp.evaluation.external_predictions import COORDEXP, read_any_format
from coordexp.evaluation.ground_truth import GroundTruth, load_ground_truth, restrict_to_images, restrict_to_phrases
from coordexp.evaluation.label_mapping import MAPPED, LabelMap
from coordexp.evaluation.options import PHRASES, EvaluateOptions, ProtocolName, options_from
from coordexp.evaluation.phrase_results import PhraseResult
from coordexp.evaluation.phrases import phrase_result
from coordexp.evaluation.protocol import ScoredProtocol
from coordexp.evaluation.protocol_result import examples, protocol_result
from coordexp.evaluation.result_types import ProtocolResult
from coordexp.evaluation.results import (
    Counts,
    EvalResult,
    Examples,
    InputFile,
    Inputs,
    LabelMappingResult,
    PredictionsFile,
    RenamedLabel,
    UnmappedLabel,
)
from coordexp.records import Prediction, read_records, software_file
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, sha256_file
from coordexp.runtime.local_paths import portable_path
from coordexp.runtime.software import describe

__all__ = ["EvaluateOptions", "evaluate", "options_from", "protocols_to_compute", "restrict_to_predicted", "score"]

EVALUATION_CODE = __name__  # the module whose code identity eval.json records


class Scores(NamedTuple):
    """What `score` computes: the part of eval.json that does not depend on files."""

    counts: Counts
    mapping: LabelMappingResult
    not_computed: dict[str, str]
    protocols: dict[ProtocolName, ProtocolResult]
    phrases: PhraseResult | None
    examples: Examples


def evaluate(
    predictions: str | Path,
    annotations: str | Path,
    options: EvaluateOptions | None = None,
    *,
    dataset: str,
    split: str | None,
    out: str | Path | None = None,
    format: str = COORDEXP,
    records: str | Path | None = None,
) -> EvalResult:
    """Score `predictions` against `annotations` (COCO or LVIS format) and write eval.json to `out` if given.

    format: of the predictions, one of `external_predictions.PREDICTION_FORMATS`.
    records: pixel-space records of the predicted split. Annotated images without a record, which the conversion left
        out or which belong to another split, are not scored; eval.json states their number.

    DataError for annotated images without a prediction (unless `options.subset`), unknown or duplicate images, images
    of another size, non-finite scores or coordinates, and invalid annotations.
    """
    options = options or EvaluateOptions()
    annotated = load_ground_truth(annotations, options.on_bad)
    ground_truth = annotated
    if records is not None:
        recorded = {r.metadata.image_id: {p.text for p in r.phrases} for r in read_records(records, "pixel")}
        ground_truth = restrict_to_phrases(restrict_to_images(annotated, recorded, Path(records)), recorded)
    rows = read_any_format(predictions, ground_truth, format, named_only=options.subset)
    scores = score(rows, ground_truth, options, where=str(predictions), annotated=annotated, format=format)
    result = results.validated(
        EvalResult(
            dataset=dataset,
            split=split,
            inputs=Inputs(
                predictions=PredictionsFile(
                    format=format, made_by=_made_by(predictions), **_file_facts(predictions, out)
                ),
                annotations=InputFile(**_file_facts(annotations, out)),
            ),
            options=options,
            **describe(code_identity(EVALUATION_CODE)),
            tie_rule=TIE_RULE,
            counts=scores.counts,
            mapping=scores.mapping,
            not_computed=scores.not_computed,
            coco=scores.protocols.get("coco"),
            lvis=scores.protocols.get("lvis"),
            phrases=scores.phrases,
            examples=scores.examples,
        )
    )
    if out is not None:
        results.write(out, result)
    return result


def score(
    rows: Iterable[tuple[str, Prediction]],
    ground_truth: GroundTruth,
    options: EvaluateOptions,
    *,
    where: str,
    annotated: GroundTruth | None = None,
    format: str = COORDEXP,
) -> Scores:
    """Score predictions, each with its location in the input; `where` names the input in errors.

    `annotated` is the ground truth of all annotated images if `ground_truth` holds only those with a record.
    """
    detections, stats = collect_detections(rows, ground_truth, LabelMap(ground_truth.categories))
    scored, detections = restrict_to_predicted(ground_truth, detections, stats, options, where)
    annotated = annotated or ground_truth
    if PHRASES in stats.protocols:
        return _score_phrases(scored, ground_truth, annotated, detections, stats, options, where, format)
    names, not_computed = protocols_to_compute(scored, options)
    protocols = [ScoredProtocol(name, scored, detections, getattr(options.max_dets, name)) for name in names]
    return Scores(
        counts=_counts(scored, ground_truth, annotated, detections, stats, format),
        mapping=_mapping(detections, scored),
        not_computed=not_computed,
        protocols={p.name: protocol_result(p, bootstrap=options.bootstrap, seed=options.seed) for p in protocols},
        phrases=None,
        examples=examples(protocols[0], options.examples),
    )


def _score_phrases(
    scored: GroundTruth,
    recorded: GroundTruth,
    annotated: GroundTruth,
    detections: DetectionTable,
    stats: AnswerStats,
    options: EvaluateOptions,
    where: str,
    format: str,
) -> Scores:
    """Scores of answers to phrases, for which AP is not defined; images as in `_counts`."""
    if set(stats.protocols) != {PHRASES}:
        found = ", ".join(stats.protocols)
        problem = "only some images were prompted with phrases"
        raise DataError(located(problem, file=where, field="protocol", expected=PHRASES, found=found))
    if not scored.phrases:
        fix = "pass annotations with phrases, or predict with another protocol"
        raise DataError(located("the annotations of these images have no phrases", file=where, fix=fix))
    block = phrase_result(
        scored,
        detections,
        stats.truncated_phrases,
        bootstrap=options.bootstrap,
        seed=options.seed,
        without_record=len(annotated.phrases) - len(recorded.phrases),
        examples=options.examples,
    )
    reason = "answers to phrases have no categories; see `phrases`"
    asked = {(phrase.image, phrase.text) for phrase in scored.phrases}
    answered = zip(detections.image.tolist(), detections.desc.tolist(), strict=True)
    unmapped = sum((image, detections.descriptions[desc]) not in asked for image, desc in answered)
    counts = _counts(scored, recorded, annotated, detections, stats, format)
    return Scores(
        counts=msgspec.structs.replace(counts, unmapped_detections=unmapped),
        mapping=LabelMappingResult(detections={}, by_description={}, renamed=[], unmapped=[]),
        not_computed=dict.fromkeys(options.protocols, reason),
        protocols={},
        phrases=block,
        examples=Examples(protocol=PHRASES, best=[], worst=[], confident_errors=[], false_positives_by_type={}),
    )


def restrict_to_predicted(
    ground_truth: GroundTruth, detections: DetectionTable, stats: AnswerStats, options: EvaluateOptions, where: str
) -> tuple[GroundTruth, DetectionTable]:
    """Restrict both to the predicted images; DataError if an image is missing and `options.subset` is off."""
    predicted = np.zeros(ground_truth.num_images, dtype=bool)
    predicted[[ground_truth.index_of[image_id] for image_id in stats.image_ids]] = True
    missing = np.flatnonzero(~predicted)
    if not len(missing):
        return ground_truth, detections
    if not options.subset:
        first = ", ".join(repr(ground_truth.image_ids[i]) for i in missing[:5])
        problem = f"{len(missing)} of {ground_truth.num_images} annotated images have no prediction (first: {first})"
        fix = "predict every image (images without objects too), or score the predicted ones only: --subset"
        raise DataError(located(problem, file=where, field="image_id", fix=fix))
    if not predicted.any():
        raise DataError(located("no predictions", file=where, expected="one line per image"))
    return ground_truth.restricted(predicted), detections.renumbered(np.cumsum(predicted) - 1)


def protocols_to_compute(
    ground_truth: GroundTruth, options: EvaluateOptions
) -> tuple[list[ProtocolName], dict[str, str]]:
    """Requested protocols that the annotations allow, and the reason for each one that is skipped."""
    skipped = {}
    names = list(dict.fromkeys(options.protocols))
    if "lvis" in names and not ground_truth.federated:
        skipped["lvis"] = "the annotations have no federated lists (neg_category_ids)"
        names.remove("lvis")
    if not names:
        fix = "add coco to evaluate.protocols"
        raise DataError(located("no protocol can be computed", field="evaluate.protocols", found=skipped, fix=fix))
    return names, skipped


def _counts(
    scored: GroundTruth,
    recorded: GroundTruth,
    annotated: GroundTruth,
    detections: DetectionTable,
    stats: AnswerStats,
    format: str,
) -> Counts:
    """Counts over the `scored` images, of those with a record (`recorded`) and of all `annotated` ones."""
    without_record = annotated.num_images - recorded.num_images
    not_scored = annotated.num_images - scored.num_images
    note = _subset_note(scored.num_images, recorded.num_images, annotated.num_images)
    found = duplicates(detections)
    return Counts(
        images=scored.num_images,
        images_annotated=annotated.num_images,
        images_without_record=without_record,
        images_without_objects=int((scored.objects_per_image == 0).sum()),
        images_without_detections=stats.without_detections,
        images_absent_from_results=not_scored + stats.without_detections if format == "coco" else None,
        objects=scored.num_objects,
        objects_without_area=int((scored.box[:, 2:] <= 0).any(axis=1).sum()),
        objects_without_record=annotated.num_objects - recorded.num_objects,
        crowds=int(scored.crowd.sum()),
        annotations_skipped=scored.skipped,
        categories=scored.num_categories,
        categories_with_objects=len(np.unique(scored.category[~scored.crowd])),
        detections=len(detections),
        calibrated_detections=stats.calibrated,
        unmapped_detections=int((detections.category < 0).sum()),
        duplicates=int(found.exact.sum()),
        duplicate_rule=f"a better detection of the same image and label has IoU >= {DUPLICATE_IOU}",
        near_duplicates=int(found.near.sum()),
        near_duplicate_rule=f"a better detection of the same image and label has IoU >= {NEAR_DUPLICATE_IOU}",
        near_duplicate_pairs=found.near_pairs,
        near_duplicate_objects=annotated_near_pairs(scored),
        boxes_outside_image=stats.boxes_outside_image,
        boxes_without_area=stats.boxes_without_area,
        answers_truncated=stats.truncated,
        answers_with_problems=stats.with_problems,
        problems=stats.problems,
        prompt_protocols=stats.protocols,
        slices=stats.slices,
        merged_detections=stats.merged,
        subset=note is not None,
        subset_note=note,
    )


def _subset_note(scored: int, recorded: int, annotated: int) -> str | None:
    notes = []
    if recorded != annotated:
        notes.append(f"{annotated - recorded} of {annotated} annotated images have no record and are not scored")
    if scored != recorded:
        notes.append(f"only the {scored} predicted of {recorded} annotated images are scored")
    return "; ".join(notes) or None


def _mapping(detections: DetectionTable, ground_truth: GroundTruth) -> LabelMappingResult:
    """How descriptions were mapped, most frequent first."""
    counts = np.bincount(detections.desc, minlength=len(detections.descriptions)).tolist()
    rows = sorted(zip(detections.descriptions, detections.labels, counts, strict=True), key=lambda r: (-r[2], r[0]))
    by_rule = dict.fromkeys((*MAPPED, "ambiguous", "unknown"), 0)
    for _, label, count in rows:
        by_rule[label.how] += count
    categories = ground_truth.categories
    return LabelMappingResult(
        detections=by_rule,
        by_description={
            desc: None if label.category is None else categories[label.category].id for desc, label, _ in rows
        },
        renamed=[
            RenamedLabel(desc=desc, category=categories[label.category].name, how=label.how, count=count)
            for desc, label, count in rows
            if label.how in ("normalised", "synonym")
        ],
        unmapped=[
            UnmappedLabel(desc=desc, why=label.how, candidates=list(label.candidates), count=count)
            for desc, label, count in rows
            if label.category is None
        ],
    )


def _made_by(predictions: str | Path) -> list[results.PredictionSoftware] | None:
    """The software that made the predictions, if `predict` has written it beside them."""
    file = software_file(predictions)
    return msgspec.convert(read_json(file), list[results.PredictionSoftware]) if file.is_file() else None


def _file_facts(path: str | Path, out: str | Path | None) -> dict[str, str | int]:
    return {"path": portable_path(path, out), "sha256": sha256_file(path), "bytes": Path(path).stat().st_size}
