"""The summary of a sweep: mean and spread of every variant over seeds, paired differences, and the best variant."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from coordexp.config.sweeps import Sweep, Trial, baseline, training_trials, trials
from coordexp.evaluation.results import load_eval
from coordexp.records import Prediction
from coordexp.reporting.figures import intervals
from coordexp.reporting.report import check_evaluated, render
from coordexp.runtime.errors import ConfigError, DataError, located, nearest
from coordexp.runtime.io import read_json, read_jsonl, write_json, write_text

SCHEMA_VERSION = 1
COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP95": "AP95",
    "F1_50": "F1 at IoU 0.5",
    "duplicates_per_image": "duplicates per image",
    "near_duplicates_per_image": "near-duplicates per image",
    "absent_false_positives": "detections of absent categories per image",
    "presence_mcc": "presence (MCC)",
    "tokens_per_object": "tokens per object",
    "tokens_per_image": "tokens per image",
    "predict_cpu_seconds": "CPU seconds of prediction",
    "cpu_seconds_per_step": "CPU seconds per step",
    "steps": "steps",
}
COMPARED = ("AP", "AP50", "AP75", "AP95", "F1_50")


class Spread(msgspec.Struct, frozen=True):
    """One metric over the seeds of a variant."""

    mean: Annotated[float | None, Meta(description="mean over seeds; null if a seed lacks the metric")]
    sd: Annotated[float | None, Meta(description="standard deviation over seeds (n - 1); null for a single seed")]
    values: Annotated[list[float | None], Meta(description="the value of each seed, in the order of `seeds`")]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Mean and standard deviation of `values`, one per seed."""
        if any(value is None for value in values):
            return cls(None, None, list(values))
        known = [float(value) for value in values if value is not None]
        return cls(mean(known), stdev(known) if len(known) > 1 else None, list(known))


class VariantRow(msgspec.Struct, frozen=True):
    """The metrics of one variant."""

    variant: str
    axes: Annotated[dict[str, str], Meta(description="the name of the variant's value on each axis")]
    overrides: Annotated[dict[str, Any], Meta(description="what the variant changes in the run")]
    numbers: dict[str, Spread]


class Difference(msgspec.Struct, frozen=True):
    """One variant minus the baseline: the difference is taken per seed, then averaged."""

    variant: str
    numbers: dict[str, Spread]


class SweepSummary(msgspec.Struct, frozen=True):
    """The content of `results/sweeps/{sweep}/summary.json`."""

    schema_version: int
    sweep: str
    run: Annotated[str, Meta(description="the run that is varied")]
    seeds: list[int]
    baseline: Annotated[str, Meta(description="the variant that the others are compared with")]
    metric: Annotated[str, Meta(description="the metric by which `best` is chosen")]
    best: Annotated[str | None, Meta(description="the variant with the highest mean of `metric`")]
    rows: list[VariantRow]
    differences: list[Difference]


def write_summary(name: str, sweep: Sweep, results: Path, summary_json: Path, page_html: Path) -> SweepSummary:
    """Summarise the finished trials of a sweep as JSON and as one self-contained page.

    `results` is the folder of the runs. DataError if a trial lacks a file or its files do not belong together,
    ConfigError if `sweep.metric` is not a metric of the trials.
    """
    summary = summarise(name, sweep, results)
    write_text(page_html, page(summary))
    write_json(summary_json, summary)
    return summary


def summarise(name: str, sweep: Sweep, results: Path) -> SweepSummary:
    """Read every trial below `results` and compare the variants."""
    measured: dict[str, list[dict[str, float | None]]] = defaultdict(list)
    first: dict[str, Trial] = {}
    listed = trials(name, sweep)
    trained = training_trials(listed)
    for trial in listed:
        measured[trial.variant].append(measure(results / trial.run, results / trained[trial.run].run))
        first.setdefault(trial.variant, trial)
    rows = [
        VariantRow(variant, first[variant].axes, first[variant].overrides, _over_seeds(numbers))
        for variant, numbers in measured.items()
    ]
    reference = baseline(name, sweep)
    return SweepSummary(
        schema_version=SCHEMA_VERSION,
        sweep=name,
        run=sweep.run,
        seeds=list(sweep.seeds),
        baseline=reference,
        metric=sweep.metric,
        best=_best(name, sweep, rows),
        rows=rows,
        differences=[
            Difference(variant, _paired(numbers, measured[reference]))
            for variant, numbers in measured.items()
            if variant != reference
        ],
    )


def measure(run: Path, trained: Path) -> dict[str, float | None]:
    """The metrics of one trial in folder `run`, whose model was trained in folder `trained`.

    AP and F1 come from the COCO block of eval.json, or from the LVIS block where COCO was not computed; for answers to
    phrases, the metrics of phrases replace them.
    """
    result = load_eval(run / "eval.json")
    block = result.coco or result.lvis
    if block is None and result.phrases is None:
        raise DataError(located("neither COCO nor LVIS AP was computed", file=run / "eval.json"))
    predictions_jsonl = run / "eval" / "predictions.jsonl"
    check_evaluated(predictions_jsonl, result.inputs.predictions.sha256)
    predictions = [msgspec.convert(line, Prediction) for line in read_jsonl(predictions_jsonl)]
    objects = sum(len(prediction.detections) for prediction in predictions)
    steps = read_json(trained / "train/adapter/train_manifest.json")["step"]
    # `predict.drop_duplicates` counts the same detections under another name
    duplicates = sum(p.problems.get(key, 0) for p in predictions for key in ("duplicates", "duplicates_dropped"))
    if block is None:
        metrics = result.phrases.metrics
    else:
        by_density = {f"recall_{row.objects_per_image}": row.recall_50 for row in block.by_density if row.objects}
        f1_50 = block.f1.all_predictions.micro.iou_50
        metrics = {**block.metrics, "AP95": block.ap_by_iou["0.95"], "F1_50": f1_50, **by_density}
    return {
        **metrics,
        "duplicates_per_image": duplicates / len(predictions),
        "near_duplicates_per_image": result.counts.near_duplicates / result.counts.images,
        "tokens_per_object": sum(len(p.token_ids) for p in predictions) / max(objects, 1),
        "tokens_per_image": sum(len(p.token_ids) for p in predictions) / len(predictions),
        "predict_cpu_seconds": sum(map(_cpu_seconds, (run / "benchmarks").glob("predict.eval.*.tsv"))) or None,
        "cpu_seconds_per_step": _cpu_seconds(trained / "benchmarks/train.tsv") / steps,
        "steps": steps,
    }


def page(summary: SweepSummary) -> str:
    """The summary as one HTML page without external resources."""
    recalls = {name for row in summary.rows for name in row.numbers if name.startswith("recall_")}
    lowest = {name: int(name.removeprefix("recall_").split("-")[0].rstrip("+")) for name in recalls}
    return render(
        "sweep.html.j2",
        title=f"Sweep {summary.sweep}",
        summary=msgspec.to_builtins(summary),
        columns={name: label for name, label in COLUMNS.items() if any(name in row.numbers for row in summary.rows)},
        recalls=sorted(recalls, key=lowest.__getitem__),
        compared=[name for name in COMPARED if any(name in d.numbers for d in summary.differences)],
        plots=[_plot(summary, name) for name in dict.fromkeys((summary.metric, "AP", "AP75"))],
    )


def _over_seeds(numbers: Sequence[Mapping[str, float | None]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for of_seed in numbers for name in of_seed)
    return {name: Spread.of([of_seed.get(name) for of_seed in numbers]) for name in names}


def _paired(numbers: Sequence[Mapping[str, float | None]], other: Sequence[Mapping[str, float | None]]) -> dict:
    """Spread over seeds of the differences between two variants; None for a seed where one of them is undefined."""

    def difference(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b

    names = [name for name in numbers[0] if name in other[0]]
    pairs = list(zip(numbers, other, strict=True))
    return {name: Spread.of([difference(a.get(name), b.get(name)) for a, b in pairs]) for name in names}


def _best(name: str, sweep: Sweep, rows: Sequence[VariantRow]) -> str | None:
    known = {metric for row in rows for metric in row.numbers}
    if sweep.metric not in known:
        problem = f"unknown metric {sweep.metric!r}{nearest(sweep.metric, known)}"
        raise ConfigError(located(problem, field=f"sweeps.{name}.metric", expected=sorted(known)))
    scored = [(row.numbers[sweep.metric].mean, row.variant) for row in rows if sweep.metric in row.numbers]
    ranked = [(value, variant) for value, variant in scored if value is not None]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _cpu_seconds(benchmark_tsv: Path) -> float:
    """Processor time of a job in seconds, including start-up, from Snakemake's benchmark file."""
    with benchmark_tsv.open(newline="") as table:
        row = next(csv.DictReader(table, delimiter="\t"), {})
    try:
        return float(row["cpu_time"])
    except (KeyError, TypeError, ValueError) as error:
        fix = "delete this file and the outputs of its rule, and run the workflow again"
        raise DataError(located("not a benchmark file", file=benchmark_tsv, field="cpu_time", fix=fix)) from error


def _plot(summary: SweepSummary, metric: str):
    """Paired differences from the baseline: mean, and one standard deviation either side."""
    rows = []
    for entry in summary.differences:
        number = entry.numbers.get(metric)
        if number is not None and number.mean is not None:
            sd = number.sd or 0.0
            rows.append((entry.variant, number.mean, (number.mean - sd, number.mean + sd), f"{number.mean:+.3f}"))
    return intervals(f"{metric} minus {metric} of {summary.baseline}, paired by seed", rows)
