"""From predictions.jsonl and the benchmark's annotations to eval.json."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import msgspec
import numpy as np

import coordexp
from coordexp.evaluation import detections as columns
from coordexp.evaluation import error_types as mistakes
from coordexp.evaluation import external_predictions as foreign
from coordexp.evaluation import ground_truth as ground_truth_file
from coordexp.evaluation import protocol
from coordexp.evaluation.label_mapping import MAPPED, LabelMap
from coordexp.records import Prediction, read_records
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.io import read_json, sha256_file, write_json

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("eval.schema.json")


class MaxDets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Detections that count: in a image (lvis), in a image and category (coco)."""

    lvis: Annotated[int, msgspec.Meta(ge=1)] = 300
    coco: Annotated[int, msgspec.Meta(ge=1)] = 100


class EvaluateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `evaluate` section of the configuration.

    protocols: which AP to compute; `lvis` needs annotations with federated lists and is otherwise left out,
      which eval.json states. max_dets: detections a image (lvis) or a image and category (coco).
    subset: the predictions cover only part of the annotated images on purpose; the truth is then
      restricted to them (of COCO results: to the images that they name).
    on_bad: whether faulty entries of the annotations are an error, or left out and counted (`data.on_bad`).
    bootstrap: replicates of the intervals, 0 for none. seed: of the bootstrap.
    listed: how many best, worst and most confidently wrong entries eval.json lists.
    """

    protocols: tuple[protocol.Name, ...] = ("lvis", "coco")
    max_dets: MaxDets = MaxDets()
    subset: bool = False
    on_bad: ground_truth_file.OnBad = "error"
    bootstrap: int = 200
    seed: int = 0
    listed: int = 50


def options_from(config: dict[str, Any]) -> EvaluateOptions:
    """Options of a plain mapping; ConfigError naming the key that is wrong."""
    try:
        return msgspec.convert(config, EvaluateOptions)
    except msgspec.ValidationError as error:
        fix = "see the evaluate section of config/config.yaml"
        raise ConfigError(located(f"evaluate: {error}", fix=fix)) from error


def evaluate(
    predictions: str | Path,
    annotations: str | Path,
    options: EvaluateOptions | None = None,
    *,
    dataset: str,
    split: str,
    out: str | Path | None = None,
    format: str = foreign.OWN,
    records: str | Path | None = None,
) -> dict[str, Any]:
    """Score `predictions` against `annotations` (COCO or LVIS format); writes eval.json to `out` if given.

    `format` names the predictions' format: `coordexp` for predictions.jsonl, or one of `foreign.LAYOUTS`.
    `records` (pixel space) are the images that were asked about: the others, which the conversion could not use
    or which are not in this split, are not judged, and eval.json says how many they are.
    Raises DataError for input that cannot be scored truthfully: images of the truth without a prediction
    line (unless `options.subset`), unknown or doubled images, another image size, scores or coordinates
    that are no finite numbers, broken annotations.
    """
    options = options or EvaluateOptions()
    whole = ground_truth_file.load(annotations, options.on_bad)
    ground_truth = whole if records is None else _recorded(whole, Path(records))
    rows = foreign.read(predictions, ground_truth, format, named_only=options.subset)
    scored = score(rows, ground_truth, options, where=str(predictions), whole=whole)
    scored["counts"]["images_not_named"] = _not_named(scored["counts"]) if format == "coco" else None
    result = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "split": split,
        "inputs": {"predictions": _input(predictions, format), "annotations": _input(annotations, None)},
        "options": msgspec.json.decode(msgspec.json.encode(options)),
        "software": {"coordexp": coordexp.__version__, "hotcoco": version("hotcoco"), "numpy": np.__version__},
        "tie_rule": columns.TIE_RULE,
        **scored,
    }
    jsonschema.validate(result, read_json(SCHEMA))
    if out is not None:
        write_json(out, result)
    return result


def score(
    rows: Iterable[tuple[str, Prediction]],
    ground_truth: ground_truth_file.GroundTruth,
    options: EvaluateOptions,
    where: str,
    whole: ground_truth_file.GroundTruth | None = None,
) -> dict[str, Any]:
    """Counts, mapping account and the block of each protocol, for (place, prediction) rows.

    `whole` is the truth of all annotated images, where `truth` is that of those with a record.
    """
    labels = LabelMap(ground_truth.categories)
    detections, answers = columns.collect(rows, ground_truth, labels)
    recorded = ground_truth
    ground_truth, detections = restrict(ground_truth, detections, answers, options, where)
    names, skipped = protocols_of(ground_truth, options)
    protocols = [protocol.Protocol(name, ground_truth, detections, getattr(options.max_dets, name)) for name in names]
    blocks = {p.name: protocol.block(p, bootstrap=options.bootstrap, seed=options.seed) for p in protocols}
    return {
        "counts": _counts(ground_truth, detections, answers) | _part(ground_truth, recorded, whole or recorded),
        "mapping": _mapping(detections, ground_truth),
        "not_computed": skipped,
        "coco": blocks.get("coco"),
        "lvis": blocks.get("lvis"),
        "images": protocol.images(protocols[0], options.listed),
    }


def restrict(
    ground_truth: ground_truth_file.GroundTruth,
    detections: columns.Detections,
    answers: columns.Answers,
    options: EvaluateOptions,
    where: str,
) -> tuple[ground_truth_file.GroundTruth, columns.Detections]:
    """Both over the predicted images; DataError when some are missing and `options.subset` is off."""
    predicted = np.zeros(ground_truth.images, dtype=bool)
    predicted[[ground_truth.index_of[image_id] for image_id in answers.images]] = True
    missing = np.flatnonzero(~predicted)
    if not len(missing):
        return ground_truth, detections
    if not options.subset:
        first = ", ".join(repr(ground_truth.image_ids[i]) for i in missing[:5])
        problem = f"{len(missing)} of {ground_truth.images} annotated images have no prediction line (first: {first})"
        fix = "predict every image (one without objects has a line too), or evaluate a part on purpose: --subset"
        raise DataError(located(problem, file=where, field="image_id", fix=fix))
    if not predicted.any():
        raise DataError(located("no prediction at all", file=where, expected="one line for each image"))
    return ground_truth.restricted(predicted), detections.renumbered(np.cumsum(predicted) - 1)


def protocols_of(
    ground_truth: ground_truth_file.GroundTruth, options: EvaluateOptions
) -> tuple[list[protocol.Name], dict[str, str]]:
    """Protocols that the annotations allow, and the reason of each that was asked for and is left out."""
    skipped = {}
    names = list(dict.fromkeys(options.protocols))
    if "lvis" in names and not ground_truth.federated:
        skipped["lvis"] = "the annotations have no federated lists (neg_category_ids)"
        names.remove("lvis")
    if not names:
        fix = "add coco to evaluate.protocols"
        raise DataError(located("no protocol can be computed", field="evaluate.protocols", found=skipped, fix=fix))
    return names, skipped


def _recorded(ground_truth: ground_truth_file.GroundTruth, records: Path) -> ground_truth_file.GroundTruth:
    return ground_truth_file.with_records(
        ground_truth, (r.metadata.image_id for r in read_records(records, "pixel")), records
    )


def _part(
    ground_truth: ground_truth_file.GroundTruth,
    recorded: ground_truth_file.GroundTruth,
    whole: ground_truth_file.GroundTruth,
) -> dict[str, Any]:
    """What is judged of all that is annotated: images with a record, and of them those with a prediction."""
    predicted, asked, annotated = ground_truth.images, recorded.images, whole.images
    notes = []
    if asked != annotated:
        left = annotated - asked
        notes.append(f"{left} of {annotated} annotated images have no record and are not judged")
    if predicted != asked:
        notes.append(f"truth restricted to the {predicted} predicted of {asked} annotated images")
    return {
        "images_annotated": annotated,
        "images_without_record": annotated - asked,
        "objects_without_record": int((~whole.crowd).sum() - (~recorded.crowd).sum()),
        "subset": bool(notes),
        "subset_note": "; ".join(notes) or None,
    }


def _counts(
    ground_truth: ground_truth_file.GroundTruth, detections: columns.Detections, answers: columns.Answers
) -> dict[str, Any]:
    unmapped = detections.category < 0
    return {
        "images": ground_truth.images,
        "images_without_objects": int((ground_truth.objects_per_image == 0).sum()),
        "images_without_detections": answers.without_detections,
        "objects": int((~ground_truth.crowd).sum()),
        "objects_without_area": int((ground_truth.box[:, 2:] <= 0).any(axis=1).sum()),
        "crowds": int(ground_truth.crowd.sum()),
        "annotations_left_out": ground_truth.left_out,
        "categories": len(ground_truth.categories),
        "categories_with_objects": len(np.unique(ground_truth.category[~ground_truth.crowd])),
        "detections": len(detections),
        "calibrated_detections": answers.calibrated,
        "unmapped_detections": int(unmapped.sum()),
        "duplicates": int(mistakes.duplicates(detections).sum()),
        "duplicate_rule": f"same image and label, IoU >= {mistakes.DUPLICATE_IOU} with a better one",
        "outside_image": answers.outside_image,
        "degenerate_boxes": answers.degenerate,
        "answers_cut_off": answers.cut_off,
        "answers_with_problems": answers.with_problems,
        "problems": answers.problems,
        "prompt_protocols": answers.protocols,
    }


def _not_named(counts: dict[str, Any]) -> int:
    """Annotated images that COCO results do not name: those left out, and those that are judged as empty."""
    return counts["images_annotated"] - counts["images"] + counts["images_without_detections"]


def _mapping(detections: columns.Detections, ground_truth: ground_truth_file.GroundTruth) -> dict[str, Any]:
    amount = np.bincount(detections.desc, minlength=len(detections.descriptions)).tolist()
    found = sorted(zip(detections.descriptions, detections.labels, amount, strict=True), key=lambda r: (-r[2], r[0]))
    tally = dict.fromkeys((*MAPPED, "ambiguous", "unknown"), 0)
    for _, label, count in found:
        tally[label.how] += count
    return {
        "detections": tally,
        "by_description": {
            desc: None if label.category is None else ground_truth.categories[label.category].id
            for desc, label, _ in found
        },
        "renamed": [
            {"desc": desc, "category": ground_truth.categories[label.category].name, "how": label.how, "count": count}
            for desc, label, count in found
            if label.how in ("normalised", "synonym")
        ],
        "unmapped": [
            {"desc": desc, "why": label.how, "candidates": list(label.candidates), "count": count}
            for desc, label, count in found
            if label.category is None
        ],
    }


def _input(path: str | Path, format: str | None) -> dict[str, Any]:
    entry = {"path": str(path), "sha256": sha256_file(path), "bytes": Path(path).stat().st_size}
    return entry if format is None else {**entry, "format": format}
