"""Compares runs on the same images: paired differences, with intervals from the same resampled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from coordexp.evaluation import results
from coordexp.evaluation.bootstrap import INTERVALS, interval, replicates, two_sided_p
from coordexp.evaluation.breakdowns import none_if_nan
from coordexp.evaluation.compare_results import (
    AnnotationsFile,
    CalibrationSummary,
    CategoryChange,
    ComparedRun,
    CompareResult,
    Difference,
    ImageChanges,
    ProtocolComparison,
    RunDifference,
    ValueWithInterval,
)
from coordexp.evaluation.detections import DetectionTable, collect_detections
from coordexp.evaluation.evaluate import protocols_to_compute, restrict_to_predicted
from coordexp.evaluation.external_predictions import COORDEXP, read_any_format
from coordexp.evaluation.f1 import f1_per_image
from coordexp.evaluation.ground_truth import GroundTruth, load_ground_truth
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.options import PHRASES, EvaluateOptions, ProtocolName
from coordexp.evaluation.protocol import ScoredProtocol
from coordexp.evaluation.results import load_eval
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import sha256_file
from coordexp.runtime.local_paths import portable_path

CATEGORIES_LISTED = 20
EQUAL_F1 = 1e-12
Replicates = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A run to compare: its name, its predictions and their format (`external_predictions.PREDICTION_FORMATS`)."""

    name: str
    predictions: Path
    format: str = COORDEXP


def run_from_eval(
    eval_json: str | Path, name: str | None = None, annotations: str | Path | None = None
) -> tuple[Run, Path]:
    """The run that was evaluated and its annotation file; DataError if a file has changed since.

    Paths in eval.json are relative to the current directory or to eval.json. A file of which eval.json has only the
    name is `annotations`, or is expected beside eval.json, or in the folder `eval` there.
    """
    inputs, folder = load_eval(eval_json).inputs, Path(eval_json).parent
    found = []
    for entry, given in ((inputs.predictions, None), (inputs.annotations, annotations)):
        last = Path(entry.path).name
        candidates = [Path(entry.path), folder / entry.path, folder / last, folder / "eval" / last]
        candidates = [Path(given), *candidates] if given is not None else candidates
        same = (path for path in candidates if path.is_file() and sha256_file(path) == entry.sha256)
        if (path := next(same, None)) is None:
            problem = f"{entry.path} is missing or has changed since the evaluation"
            fix = "evaluate the run again, pass --gt for annotations in another folder, or start in the same folder"
            raise DataError(located(problem, file=eval_json, fix=fix))
        found.append(path)
    return Run(name or folder.name, found[0], inputs.predictions.format), found[1]


def compare_evaluated(
    eval_jsons: list[str | Path],
    options: EvaluateOptions | None = None,
    *,
    annotations: str | Path | None = None,
    out: str | Path | None = None,
) -> CompareResult:
    """`compare` for evaluated runs, named by their directories; by default with the options of the first one.

    DataError if they were evaluated on different annotations or their files have changed since.
    """
    evaluated = [load_eval(path) for path in eval_jsons]
    runs = [run_from_eval(path, annotations=annotations) for path in eval_jsons]
    if len({result.inputs.annotations.sha256 for result in evaluated}) != 1:
        names = [str(path) for path in eval_jsons]
        raise DataError(located("evaluated on different annotations", found=names, fix="compare runs of one split"))
    first = evaluated[0]
    subset = any(result.counts.subset for result in evaluated)
    options = options or msgspec.structs.replace(first.options, subset=subset)
    return compare([run for run, _ in runs], runs[0][1], options, dataset=first.dataset, split=first.split, out=out)


def compare(
    runs: list[Run],
    annotations: str | Path,
    options: EvaluateOptions | None = None,
    *,
    dataset: str,
    split: str | None,
    out: str | Path | None = None,
) -> CompareResult:
    """Differences of every run from the first one; writes compare.json to `out` if given.

    All runs must have predicted the same images; with `options.subset` the ground truth is restricted to them. Each
    protocol has the metrics of every run and, for each later run and metric, the difference, its 95% interval and a
    two-sided bootstrap p-value (paired: both runs are scored on the same resampled images), the categories that changed
    most, and the number of images that got better or worse.
    """
    options = options or EvaluateOptions()
    if len(runs) < 2 or len({run.name for run in runs}) < len(runs):
        names = [run.name for run in runs]
        raise DataError(located("cannot compare", expected="at least two runs with different names", found=names))
    annotated = load_ground_truth(annotations, options.on_bad)
    loaded = [_load(run, annotated, options) for run in runs]
    ground_truth = loaded[0][0]
    for run, (other, _) in zip(runs[1:], loaded[1:], strict=True):
        if other.image_ids != ground_truth.image_ids:
            problem = f"{run.name} and {runs[0].name} predicted different images"
            fix = "predict the same images with both runs"
            raise DataError(located(problem, file=run.predictions, field="image_id", fix=fix))
    names, not_computed = protocols_to_compute(ground_truth, options)
    detections = {run.name: found for run, (_, found) in zip(runs, loaded, strict=True)}
    blocks = {name: _compare_protocol(name, ground_truth, detections, options) for name in names}
    result = results.validated(
        CompareResult(
            dataset=dataset,
            split=split,
            images=ground_truth.num_images,
            images_annotated=annotated.num_images,
            annotations=AnnotationsFile(path=portable_path(annotations, out), sha256=sha256_file(annotations)),
            runs=[
                ComparedRun(
                    name=r.name,
                    path=portable_path(r.predictions, out),
                    format=r.format,
                    sha256=sha256_file(r.predictions),
                )
                for r in runs
            ],
            intervals=f"{INTERVALS}, {options.bootstrap} replicates, seed {options.seed}",
            not_computed=not_computed,
            coco=blocks.get("coco"),
            lvis=blocks.get("lvis"),
        )
    )
    if out is not None:
        results.write(out, result)
    return result


def _load(run: Run, annotated: GroundTruth, options: EvaluateOptions) -> tuple[GroundTruth, DetectionTable]:
    rows = read_any_format(run.predictions, annotated, run.format, named_only=options.subset)
    detections, stats = collect_detections(rows, annotated, LabelMap(annotated.categories))
    if PHRASES in stats.protocols:
        fix = "evaluate each run, and compare the intervals of `phrases` in their eval.json"
        raise DataError(
            located("answers to phrases cannot be compared", file=run.predictions, field="protocol", fix=fix)
        )
    return restrict_to_predicted(annotated, detections, stats, options, str(run.predictions))


def _compare_protocol(
    name: ProtocolName, ground_truth: GroundTruth, detections: Mapping[str, DetectionTable], options: EvaluateOptions
) -> ProtocolComparison:
    max_dets = getattr(options.max_dets, name)
    protocols = {run: ScoredProtocol(name, ground_truth, d, max_dets) for run, d in detections.items()}
    # with one seed, replicate r draws the same images for every run
    drawn = {
        run: replicates(p.statistic, ground_truth.num_images, options.bootstrap, options.seed)
        for run, p in protocols.items()
    }
    base, *others = protocols
    calibration = {run: p.calibration() for run, p in protocols.items()}
    return ProtocolComparison(
        base=base,
        runs={run: _with_intervals(p.values, drawn[run]) for run, p in protocols.items()},
        calibration={run: CalibrationSummary(ece=c.ece, brier=c.brier) for run, c in calibration.items()},
        differences={
            run: RunDifference(
                metrics=_differences(protocols[base].values, protocols[run].values, drawn[base], drawn[run]),
                categories=_category_changes(ground_truth, protocols[base], protocols[run]),
                images=_image_changes(protocols[base], protocols[run]),
            )
            for run in others
        },
    )


def _with_intervals(values: dict[str, float], drawn: Replicates) -> dict[str, ValueWithInterval]:
    return {
        name: ValueWithInterval(value=none_if_nan(value), interval=interval(value, drawn[name]) if drawn else None)
        for name, value in values.items()
    }


def _differences(
    base: dict[str, float], run: dict[str, float], drawn_base: Replicates, drawn_run: Replicates
) -> dict[str, Difference]:
    differences = {}
    for name in base:
        difference = run[name] - base[name]
        replicate = drawn_run[name] - drawn_base[name] if drawn_base else np.zeros(0)
        differences[name] = Difference(
            difference=none_if_nan(difference),
            interval=interval(difference, replicate, (-1.0, 1.0)),
            p=two_sided_p(difference, replicate),
        )
    return differences


def _category_changes(ground_truth: GroundTruth, base: ScoredProtocol, run: ScoredProtocol) -> list[CategoryChange]:
    """Categories whose AP changed most, largest change first."""
    a, b = (protocol.ranked.average_precision().mean(axis=1) for protocol in (base, run))
    order = sorted(np.flatnonzero(~np.isnan(a) & (a != b)), key=lambda k: (-abs(b[k] - a[k]), k))
    categories = ground_truth.categories
    return [
        CategoryChange(id=categories[k].id, name=categories[k].name, base=float(a[k]), run=float(b[k]))
        for k in order[:CATEGORIES_LISTED]
    ]


def _image_changes(base: ScoredProtocol, run: ScoredProtocol) -> ImageChanges:
    """Images by the change of their F1 at IoU 0.5; F1 is 1 if there is nothing to detect and nothing was detected."""
    a, b = (f1_per_image(protocol.all_predictions, empty=1.0) for protocol in (base, run))
    change = b - a
    return ImageChanges(
        better=int((change > EQUAL_F1).sum()),
        worse=int((change < -EQUAL_F1).sum()),
        equal=int((abs(change) <= EQUAL_F1).sum()),
    )
