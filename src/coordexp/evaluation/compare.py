"""Two or more runs on the same truth: paired differences with intervals from the same resampled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np

from coordexp.evaluation import breakdowns as tables
from coordexp.evaluation import detections as columns
from coordexp.evaluation import external_predictions as foreign
from coordexp.evaluation import ground_truth as ground_truth_file
from coordexp.evaluation.bootstrap import INTERVALS, interval, replicates, two_sided_p
from coordexp.evaluation.evaluate import EvaluateOptions, options_from, protocols_of, restrict
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.protocol import Name, Protocol
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, sha256_file, write_json

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("compare.schema.json")
CATEGORIES_LISTED = 20


@dataclass(frozen=True)
class Run:
    """One run to compare: its name, its predictions and their format (see `foreign`)."""

    name: str
    predictions: Path
    format: str = foreign.OWN


def run_of(eval_json: str | Path, name: str | None = None) -> tuple[Run, Path]:
    """The run that an eval.json was made from and its annotation file; DataError when a file has changed since.

    Paths in eval.json are taken as they were given to `evaluate`, so call this from the same folder.
    """
    result = read_json(eval_json)
    inputs = result["inputs"]
    for entry in inputs.values():
        if not Path(entry["path"]).is_file() or sha256_file(entry["path"]) != entry["sha256"]:
            problem = f"{entry['path']} is missing or has changed since the evaluation"
            raise DataError(located(problem, file=eval_json, fix="evaluate the run again"))
    predictions = inputs["predictions"]
    run = Run(name or Path(eval_json).parent.name, Path(predictions["path"]), predictions["format"])
    return run, Path(inputs["annotations"]["path"])


def compare_evaluated(
    eval_jsons: list[str | Path], options: EvaluateOptions | None = None, *, out: str | Path | None = None
) -> dict[str, Any]:
    """`compare` for runs that have an eval.json, named by their folders; without options those of the first.

    DataError when they were evaluated on different annotations or their files have changed since.
    """
    results = [read_json(path) for path in eval_jsons]
    found = [run_of(path) for path in eval_jsons]
    digests = {result["inputs"]["annotations"]["sha256"] for result in results}
    if len(digests) != 1:
        names = [str(path) for path in eval_jsons]
        raise DataError(located("evaluated on different annotations", found=names, fix="compare runs of one split"))
    part = any(result["counts"]["subset"] for result in results)
    options = options or msgspec.structs.replace(options_from(results[0]["options"]), subset=part)
    dataset, split = results[0]["dataset"], results[0]["split"]
    return compare([run for run, _ in found], found[0][1], options, dataset=dataset, split=split, out=out)


def compare(
    runs: list[Run],
    annotations: str | Path,
    options: EvaluateOptions | None = None,
    *,
    dataset: str,
    split: str,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Differences of every run from the first one; writes compare.json to `out` if given.

    All runs must have predicted the same images. With `options.subset` the truth is restricted to them.
    Each protocol has the runs' numbers, and for each later run and number: difference, 95 % interval,
    two-sided bootstrap p-value (paired: the same images are drawn for both), the categories that changed
    most, and how many images got better or worse.
    """
    options = options or EvaluateOptions()
    if len(runs) < 2 or len({run.name for run in runs}) < len(runs):
        names = [run.name for run in runs]
        raise DataError(located("cannot compare", expected="at least two runs with different names", found=names))
    ground_truth = ground_truth_file.load(annotations, options.on_bad)
    loaded = [_load(run, ground_truth, options) for run in runs]
    first = loaded[0][0]
    for run, (own, _) in zip(runs[1:], loaded[1:], strict=True):
        if own.image_ids != first.image_ids:
            problem = f"{run.name} predicted other images than {runs[0].name}"
            fix = "predict the same images with both runs"
            raise DataError(located(problem, file=run.predictions, field="image_id", fix=fix))
    names, skipped = protocols_of(first, options)
    found = {run.name: detections for run, (_, detections) in zip(runs, loaded, strict=True)}
    result = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "split": split,
        "images": first.images,
        "images_annotated": ground_truth.images,
        "annotations": {"path": str(annotations), "sha256": sha256_file(annotations)},
        "runs": [
            {"name": r.name, "path": str(r.predictions), "format": r.format, "sha256": sha256_file(r.predictions)}
            for r in runs
        ],
        "intervals": f"{INTERVALS}, {options.bootstrap} replicates, seed {options.seed}",
        "not_computed": skipped,
        **dict.fromkeys(("coco", "lvis")),
        **{name: _block(name, first, found, options) for name in names},
    }
    jsonschema.validate(result, read_json(SCHEMA))
    if out is not None:
        write_json(out, result)
    return result


def _load(
    run: Run, ground_truth: ground_truth_file.GroundTruth, options: EvaluateOptions
) -> tuple[ground_truth_file.GroundTruth, columns.Detections]:
    rows = foreign.read(run.predictions, ground_truth, run.format, named_only=options.subset)
    found, answers = columns.collect(rows, ground_truth, LabelMap(ground_truth.categories))
    return restrict(ground_truth, found, answers, options, str(run.predictions))


def _block(
    name: Name,
    ground_truth: ground_truth_file.GroundTruth,
    found: Mapping[str, columns.Detections],
    options: EvaluateOptions,
) -> dict[str, Any]:
    parts = {run: Protocol(name, ground_truth, d, getattr(options.max_dets, name)) for run, d in found.items()}
    once = np.ones(ground_truth.images, dtype=np.int64)
    values = {run: part.statistic(once) for run, part in parts.items()}
    # one seed: replicate r draws the same images for every run
    drawn = {
        run: replicates(p.statistic, ground_truth.images, options.bootstrap, options.seed) for run, p in parts.items()
    }
    base, *others = parts
    categories = {run: part.ranked.average_precision() for run, part in parts.items()}
    return {
        "base": base,
        "runs": {run: _numbers(values[run], drawn[run]) for run in parts},
        "calibration": {
            run: {name: part.calibration()[name] for name in ("ece", "brier")} for run, part in parts.items()
        },
        "differences": {
            run: {
                "metrics": {
                    metric: _difference(values[base][metric], values[run][metric], drawn[base], drawn[run], metric)
                    for metric in values[base]
                },
                "categories": _categories(ground_truth, categories[base], categories[run]),
                "images": _images(parts[base], parts[run]),
            }
            for run in others
        },
    }


def _numbers(values: dict[str, float], drawn: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {"value": tables.none_if_nan(value), "interval": interval(value, drawn[name]) if drawn else None}
        for name, value in values.items()
    }


def _difference(a: float, b: float, drawn_a: dict, drawn_b: dict, name: str) -> dict[str, Any]:
    change = drawn_b[name] - drawn_a[name] if drawn_a else np.zeros(0)
    return {
        "difference": tables.none_if_nan(b - a),
        "interval": interval(b - a, change, (-1.0, 1.0)),
        "p": two_sided_p(b - a, change),
    }


def _categories(
    ground_truth: ground_truth_file.GroundTruth, base: np.ndarray, other: np.ndarray
) -> list[dict[str, Any]]:
    """The categories whose AP changed most, largest change first."""
    a, b = base.mean(axis=1), other.mean(axis=1)
    order = sorted(np.flatnonzero(~np.isnan(a) & (a != b)), key=lambda k: (-abs(b[k] - a[k]), k))
    return [
        {
            "id": ground_truth.categories[k].id,
            "name": ground_truth.categories[k].name,
            "base": float(a[k]),
            "run": float(b[k]),
        }
        for k in order[:CATEGORIES_LISTED]
    ]


def _images(base: Protocol, other: Protocol) -> dict[str, int]:
    """Images by what happened to their F1 at IoU .5."""
    change = _image_f1(other) - _image_f1(base)
    return {
        "better": int((change > 1e-12).sum()),
        "worse": int((change < -1e-12).sum()),
        "equal": int((abs(change) <= 1e-12).sum()),
    }


def _image_f1(part: Protocol) -> np.ndarray:
    """F1 at IoU .5 of each image, float64 [I]; 1 where there is nothing to find and nothing was said."""
    hits, alarms, objects = part.all_predictions.per_image(0)
    total = hits + alarms + objects
    return np.divide(2.0 * hits, total, out=np.ones(len(hits)), where=total > 0)
