"""The report that puts several runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from coordexp.evaluation.compare import SCHEMA_VERSION
from coordexp.reporting import curves
from coordexp.reporting.report import NAMES, number, render
from coordexp.reporting.svg import Series, intervals, lines
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_text

TITLES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "F1_50_micro": "F1 .5 micro",
    "F1_50_macro": "F1 .5 macro",
    "F1_micro": "F1 .5:.95 micro",
    "precision_50": "precision .5",
    "recall_50": "recall .5",
}


def write_comparison(
    out_html: str | Path,
    *,
    compare_json: str | Path,
    train_logs: Mapping[str, str | Path] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write the comparison to `out_html`, one file that needs nothing else.

    compare_json: what `coordexp.evaluation.compare.compare` wrote. train_logs: log by name of the run, for those
    that have one. DataError when compare.json is of another version or a log names no run.
    """
    result = read_json(compare_json)
    found = result.get("schema_version") if isinstance(result, dict) else None
    if found != SCHEMA_VERSION:
        problem = "not a compare.json of this version"
        raise DataError(
            located(problem, file=compare_json, field="schema_version", expected=SCHEMA_VERSION, found=found)
        )
    names = [run["name"] for run in result["runs"]]
    logs = dict(train_logs or {})
    for name in logs:
        if name not in names:
            raise DataError(located(f"a train log of {name!r}, which is none of the runs", expected=names))
    page = render(
        "comparison.html.j2",
        title=" against ".join(reversed(names)) if len(names) == 2 else f"{len(names)} runs on {result['dataset']}",
        result=result,
        names=names,
        titles=TITLES,
        blocks=[(NAMES[name], result[name]) for name in ("coco", "lvis") if result[name]],
        difference_plot=_difference_plot,
        training=_training(logs),
        provenance={**(provenance or {}), "runs": result["runs"], "annotations": result["annotations"]},
    )
    write_text(out_html, page)


def _difference_plot(protocol: str, run: str, base: str, metrics: dict[str, dict]) -> Markup:
    rows = [
        (TITLES[name], row["difference"], row["interval"], f"{row['difference']:+.3f}, p {_p(row['p'])}")
        for name, row in metrics.items()
        if row["difference"] is not None
    ]
    return intervals(f"{protocol}: {run} minus {base}", rows)


def _training(logs: Mapping[str, str | Path]) -> Markup | None:
    totals = []
    for name, path in logs.items():
        loss = next((s for s in curves.losses(curves.read_log(path)) if s.name == "loss"), None)
        if loss is not None:
            smoothed = curves.smooth(loss)
            totals.append(Series(name, smoothed.x, smoothed.y))
    return lines("Loss over training steps", totals, x_label="step", y_label="loss", log_y=True) if totals else None


def _p(value: float | None) -> str:
    return "–" if value is None else number(value)
