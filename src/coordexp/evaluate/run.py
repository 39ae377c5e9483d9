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
from coordexp.contract import Prediction
from coordexp.errors import ConfigError, DataError, located
from coordexp.evaluate import detections as columns
from coordexp.evaluate import foreign, mistakes, protocol
from coordexp.evaluate import truth as truth_file
from coordexp.evaluate.labels import MAPPED, LabelMap
from coordexp.io import read_json, read_records, sha256_file, write_json

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("eval.schema.json")


class MaxDets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Detections that count: in a picture (lvis), in a picture and category (coco)."""

    lvis: Annotated[int, msgspec.Meta(ge=1)] = 300
    coco: Annotated[int, msgspec.Meta(ge=1)] = 100


class EvaluateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `evaluate` section of the configuration.

    protocols: which AP to compute; `lvis` needs annotations with federated lists and is otherwise left out,
      which eval.json states. max_dets: detections a picture (lvis) or a picture and category (coco).
    subset: the predictions cover only part of the annotated pictures on purpose; the truth is then
      restricted to them (of COCO results: to the pictures that they name).
    on_bad: whether faulty entries of the annotations are an error, or left out and counted (`data.on_bad`).
    bootstrap: replicates of the intervals, 0 for none. seed: of the bootstrap.
    listed: how many best, worst and most confidently wrong entries eval.json lists.
    """

    protocols: tuple[protocol.Name, ...] = ("lvis", "coco")
    max_dets: MaxDets = MaxDets()
    subset: bool = False
    on_bad: truth_file.OnBad = "error"
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
    layout: str = foreign.OWN,
    records: str | Path | None = None,
) -> dict[str, Any]:
    """Score `predictions` against `annotations` (COCO or LVIS layout); writes eval.json to `out` if given.

    `layout` names the predictions' format: `coordexp` for predictions.jsonl, or one of `foreign.LAYOUTS`.
    `records` (pixel space) are the pictures that were asked about: the others, which the conversion could not use
    or which are not in this split, are not judged, and eval.json says how many they are.
    Raises DataError for input that cannot be scored truthfully: pictures of the truth without a prediction
    line (unless `options.subset`), unknown or doubled pictures, another picture size, scores or coordinates
    that are no finite numbers, broken annotations.
    """
    options = options or EvaluateOptions()
    whole = truth_file.load(annotations, options.on_bad)
    truth = whole if records is None else _recorded(whole, Path(records))
    rows = foreign.read(predictions, truth, layout, named_only=options.subset)
    scored = score(rows, truth, options, where=str(predictions), whole=whole)
    scored["counts"]["pictures_not_named"] = _not_named(scored["counts"]) if layout == "coco" else None
    result = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "split": split,
        "inputs": {"predictions": _input(predictions, layout), "annotations": _input(annotations, None)},
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
    truth: truth_file.Truth,
    options: EvaluateOptions,
    where: str,
    whole: truth_file.Truth | None = None,
) -> dict[str, Any]:
    """Counts, mapping account and the block of each protocol, for (place, prediction) rows.

    `whole` is the truth of all annotated pictures, where `truth` is that of those with a record.
    """
    labels = LabelMap(truth.categories)
    detections, answers = columns.collect(rows, truth, labels)
    recorded = truth
    truth, detections = restrict(truth, detections, answers, options, where)
    names, skipped = protocols_of(truth, options)
    protocols = [protocol.Protocol(name, truth, detections, getattr(options.max_dets, name)) for name in names]
    blocks = {p.name: protocol.block(p, bootstrap=options.bootstrap, seed=options.seed) for p in protocols}
    return {
        "counts": _counts(truth, detections, answers) | _part(truth, recorded, whole or recorded),
        "mapping": _mapping(detections, truth),
        "not_computed": skipped,
        "coco": blocks.get("coco"),
        "lvis": blocks.get("lvis"),
        "pictures": protocol.pictures(protocols[0], options.listed),
    }


def restrict(
    truth: truth_file.Truth,
    detections: columns.Detections,
    answers: columns.Answers,
    options: EvaluateOptions,
    where: str,
) -> tuple[truth_file.Truth, columns.Detections]:
    """Both over the predicted pictures; DataError when some are missing and `options.subset` is off."""
    predicted = np.zeros(truth.pictures, dtype=bool)
    predicted[[truth.index_of[image_id] for image_id in answers.pictures]] = True
    missing = np.flatnonzero(~predicted)
    if not len(missing):
        return truth, detections
    if not options.subset:
        first = ", ".join(repr(truth.image_ids[i]) for i in missing[:5])
        problem = f"{len(missing)} of {truth.pictures} annotated pictures have no prediction line (first: {first})"
        fix = "predict every picture (one without objects has a line too), or evaluate a part on purpose: --subset"
        raise DataError(located(problem, file=where, field="image_id", fix=fix))
    if not predicted.any():
        raise DataError(located("no prediction at all", file=where, expected="one line for each picture"))
    return truth.restricted(predicted), detections.renumbered(np.cumsum(predicted) - 1)


def protocols_of(truth: truth_file.Truth, options: EvaluateOptions) -> tuple[list[protocol.Name], dict[str, str]]:
    """Protocols that the annotations allow, and the reason of each that was asked for and is left out."""
    skipped = {}
    names = list(dict.fromkeys(options.protocols))
    if "lvis" in names and not truth.federated:
        skipped["lvis"] = "the annotations have no federated lists (neg_category_ids)"
        names.remove("lvis")
    if not names:
        fix = "add coco to evaluate.protocols"
        raise DataError(located("no protocol can be computed", field="evaluate.protocols", found=skipped, fix=fix))
    return names, skipped


def _recorded(truth: truth_file.Truth, records: Path) -> truth_file.Truth:
    return truth_file.with_records(truth, (r.metadata.image_id for r in read_records(records, "pixel")), records)


def _part(truth: truth_file.Truth, recorded: truth_file.Truth, whole: truth_file.Truth) -> dict[str, Any]:
    """What is judged of all that is annotated: pictures with a record, and of them those with a prediction."""
    predicted, asked, annotated = truth.pictures, recorded.pictures, whole.pictures
    notes = []
    if asked != annotated:
        left = annotated - asked
        notes.append(f"{left} of {annotated} annotated pictures have no record and are not judged")
    if predicted != asked:
        notes.append(f"truth restricted to the {predicted} predicted of {asked} annotated pictures")
    return {
        "pictures_annotated": annotated,
        "pictures_without_record": annotated - asked,
        "objects_without_record": int((~whole.crowd).sum() - (~recorded.crowd).sum()),
        "subset": bool(notes),
        "subset_note": "; ".join(notes) or None,
    }


def _counts(truth: truth_file.Truth, detections: columns.Detections, answers: columns.Answers) -> dict[str, Any]:
    unmapped = detections.category < 0
    return {
        "pictures": truth.pictures,
        "pictures_without_objects": int((truth.objects_per_picture == 0).sum()),
        "pictures_without_detections": answers.without_detections,
        "objects": int((~truth.crowd).sum()),
        "objects_without_area": int((truth.box[:, 2:] <= 0).any(axis=1).sum()),
        "crowds": int(truth.crowd.sum()),
        "annotations_left_out": truth.left_out,
        "categories": len(truth.categories),
        "categories_with_objects": len(np.unique(truth.category[~truth.crowd])),
        "detections": len(detections),
        "calibrated_detections": answers.calibrated,
        "unmapped_detections": int(unmapped.sum()),
        "duplicates": int(mistakes.duplicates(detections).sum()),
        "duplicate_rule": f"same picture and label, IoU >= {mistakes.DUPLICATE_IOU} with a better one",
        "outside_picture": answers.outside_picture,
        "degenerate_boxes": answers.degenerate,
        "answers_cut_off": answers.cut_off,
        "answers_with_problems": answers.with_problems,
        "problems": answers.problems,
        "prompt_protocols": answers.protocols,
    }


def _not_named(counts: dict[str, Any]) -> int:
    """Annotated pictures that COCO results do not name: those left out, and those that are judged as empty."""
    return counts["pictures_annotated"] - counts["pictures"] + counts["pictures_without_detections"]


def _mapping(detections: columns.Detections, truth: truth_file.Truth) -> dict[str, Any]:
    amount = np.bincount(detections.desc, minlength=len(detections.descriptions)).tolist()
    found = sorted(zip(detections.descriptions, detections.labels, amount, strict=True), key=lambda r: (-r[2], r[0]))
    tally = dict.fromkeys((*MAPPED, "ambiguous", "unknown"), 0)
    for _, label, count in found:
        tally[label.how] += count
    return {
        "detections": tally,
        "by_description": {
            desc: None if label.category is None else truth.categories[label.category].id for desc, label, _ in found
        },
        "renamed": [
            {"desc": desc, "category": truth.categories[label.category].name, "how": label.how, "count": count}
            for desc, label, count in found
            if label.how in ("normalised", "synonym")
        ],
        "unmapped": [
            {"desc": desc, "why": label.how, "candidates": list(label.candidates), "count": count}
            for desc, label, count in found
            if label.category is None
        ],
    }


def _input(path: str | Path, layout: str | None) -> dict[str, Any]:
    entry = {"path": str(path), "sha256": sha256_file(path), "bytes": Path(path).stat().st_size}
    return entry if layout is None else {**entry, "layout": layout}
