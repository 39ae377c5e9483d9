"""The ablation's numbers: each arm's mean and spread over seeds, and differences paired by seed, as JSON and page."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import msgspec
from markupsafe import Markup

from coordexp.config.sweeps import Ablation, Cell
from coordexp.records import Prediction
from coordexp.reporting.report import check_evaluated, render
from coordexp.reporting.svg import intervals
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, read_jsonl, write_json, write_text

SCHEMA_VERSION = 1
METRICS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP95": "AP95",
    "F1_50": "F1 .5",
    "duplicates": "duplicates a image",
    "tokens_per_object": "tokens an object",
    "cpu_seconds_per_step": "CPU s a step",
    "steps": "steps",
}
DUPLICATES = ("duplicates", "duplicates_dropped")  # what `predict.drop_duplicates` calls the same thing
COMPARED = ("AP", "AP50", "AP75", "AP95")


class Key(NamedTuple):
    """What seeds are averaged over: one arm from one start under one decoding."""

    start: str
    arm: str
    decode: str


def summarise(ablation: Ablation, arms: Path, bases: Path, *, run: str) -> dict[str, Any]:
    """Read every cell below `arms` (the run's ablation folder), and what the bases below `bases` cost."""
    found: dict[Key, dict[int, dict[str, float]]] = defaultdict(dict)
    for cell in ablation.cells():
        found[Key(cell.start, cell.arm, cell.decode)][cell.seed] = measured(cell, arms)
    rows = [{**key._asdict(), **_over_seeds(seeds)} for key, seeds in found.items()]
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "seeds": ablation.section["seeds"],
        "arms": {arm: _about(ablation, arm) for arm in ablation.section["arms"]},
        "base": _base(ablation, bases),
        "rows": rows,
        "differences": list(_differences(ablation, found)),
    }


def _base(ablation: Ablation, bases: Path) -> dict[str, Any] | None:
    """What the bases learnt on and cost; None where no arm starts from one."""
    if "base" not in ablation.section["starts"]:
        return None
    seconds = [_cpu_seconds(bases / f"base-{seed}") for seed in ablation.section["seeds"]]
    return {"data": ablation.section["base"]["run"], "cpu_seconds": spread(seconds)}


def measured(cell: Cell, arms: Path) -> dict[str, float]:
    """The numbers of one cell; of the LVIS block where COCO was not computed."""
    numbers = read_json(arms / f"{cell.name}.json")
    block = numbers["coco"] or numbers["lvis"]
    if block is None:
        raise DataError(located("neither coco nor lvis was computed", file=arms / f"{cell.name}.json"))
    answers = arms / cell.name / "1-of-1.jsonl"
    check_evaluated(answers, numbers)
    predictions = [msgspec.convert(line, Prediction) for line in read_jsonl(answers)]
    objects = sum(len(p.detections) for p in predictions)
    recall = {f"recall_{row['objects_per_image']}": row["recall_50"] for row in block["by_density"] if row["objects"]}
    steps = read_json(arms / cell.trained / "train/adapter/train_manifest.json")["step"]
    return {
        **{name: block["metrics"][name] for name in ("AP", "AP50", "AP75")},
        "AP95": block["ap_by_iou"]["0.95"],
        "F1_50": block["f1"]["all_predictions"]["micro"]["0.50"],
        **recall,
        "duplicates": sum(p.problems.get(name, 0) for p in predictions for name in DUPLICATES) / len(predictions),
        "tokens_per_object": sum(len(p.token_ids) for p in predictions) / max(objects, 1),
        "cpu_seconds_per_step": _cpu_seconds(arms / cell.trained) / steps,
        "steps": steps,
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of one number over seeds; None where a seed has none."""
    if any(value is None for value in values):
        return {"mean": None, "sd": None, "values": list(values)}
    known = [float(value) for value in values]  # type: ignore[arg-type]
    return {"mean": mean(known), "sd": stdev(known) if len(known) > 1 else None, "values": known}


def write_page(summary: dict[str, Any], out: Path) -> None:
    """The summary as one self-contained page."""
    title = f"Ablation on {summary['run']}"
    plots = [_plot(summary, start, metric) for start in _starts(summary) for metric in ("AP", "AP75")]
    recalls = sorted({name for row in summary["rows"] for name in row["numbers"] if name.startswith("recall_")})
    write_text(
        out,
        render(
            "ablation.html.j2",
            title=title,
            summary=summary,
            starts=_starts(summary),
            metrics=METRICS,
            recalls=sorted(recalls, key=lambda name: int(name.removeprefix("recall_").split("-")[0].rstrip("+"))),
            plots=plots,
            compared=COMPARED,
        ),
    )


def write(ablation: Ablation, summary: Path, page: Path) -> None:
    """Summary and page of the run in whose ablation folder `summary` lies; the bases lie beside that folder."""
    arms = summary.parent
    numbers = summarise(ablation, arms, arms.parent, run=arms.name)
    write_page(numbers, page)
    write_json(summary, numbers)


def _over_seeds(seeds: dict[int, dict[str, float]]) -> dict[str, Any]:
    names = sorted({name for numbers in seeds.values() for name in numbers})
    return {"numbers": {name: spread([numbers.get(name) for numbers in seeds.values()]) for name in names}}


def _differences(ablation: Ablation, found: dict[Key, dict[int, dict[str, float]]]) -> Iterable[dict[str, Any]]:
    """Each arm minus every earlier one, with the same seed and decoding (text integers: their only one)."""
    arms = ablation.section["arms"]
    for start in ablation.section["starts"]:
        for later, arm in enumerate(arms):
            for decode in ablation.decodings(arm):
                for base in arms[:later]:
                    other = found[Key(start, base, _nearest(ablation, base, decode))]
                    paired = _paired(found[Key(start, arm, decode)], other)
                    yield {"start": start, "arm": arm, "minus": base, "decode": decode, "numbers": paired}


def _paired(own: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Differences of the headline numbers by seed; none where a number is undefined."""

    def difference(seed: int, name: str) -> float | None:
        here, there = own[seed][name], other[seed][name]
        return None if here is None or there is None else here - there

    return {name: spread([difference(seed, name) for seed in own]) for name in COMPARED}


def _nearest(ablation: Ablation, arm: str, decode: str) -> str:
    own = ablation.decodings(arm)
    return decode if decode in own else own[0]


def _about(ablation: Ablation, arm: str) -> dict[str, Any]:
    custom = ablation.recipe(arm).custom
    return {
        "tokens": custom.coord_tokens.enabled,
        "ordering": custom.object_ordering,
        "loss": msgspec.to_builtins(custom.loss),
    }


def _cpu_seconds(trained: Path) -> float:
    """Processor time of a training job, start-up included, as Snakemake's benchmark of the rule has it."""
    path = trained / "benchmarks/train.tsv"
    with path.open(newline="") as table:
        row = next(csv.DictReader(table, delimiter="\t"), {})
    try:
        return float(row["cpu_time"])
    except (KeyError, TypeError, ValueError) as error:
        fix = "delete the file and what training wrote beside it, so that it trains again"
        raise DataError(located("not the benchmark of a rule", file=path, field="cpu_time", fix=fix)) from error


def _starts(summary: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["start"] for row in summary["rows"]))


def _plot(summary: dict[str, Any], start: str, metric: str) -> Markup:
    """Paired differences from the first arm with coordinate tokens, else the first: mean and one standard deviation."""
    reference = next((name for name, about in summary["arms"].items() if about["tokens"]), next(iter(summary["arms"])))
    rows = []
    for entry in summary["differences"]:
        number = entry["numbers"][metric]
        if (entry["start"], entry["minus"]) == (start, reference) and number["mean"] is not None:
            around = number["sd"] or 0.0
            reach = (number["mean"] - around, number["mean"] + around)
            rows.append((f"{entry['arm']}, {entry['decode']}", number["mean"], reach, f"{number['mean']:+.3f}"))
    return intervals(f"{metric} minus that of `{reference}` with the same seed, from {start}", rows)
