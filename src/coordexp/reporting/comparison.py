"""The comparison page: several runs on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from coordexp.evaluation.compare_results import Difference, load_compare
from coordexp.evaluation.options import PROTOCOL_TITLES
from coordexp.reporting import curves
from coordexp.reporting.figures import intervals, lines
from coordexp.reporting.report import number, render
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import write_text

TITLES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "F1_50_micro": "F1 at 0.5, micro",
    "F1_50_macro": "F1 at 0.5, macro",
    "F1_micro": "F1 at 0.50:0.95, micro",
    "precision_50": "precision at 0.5",
    "recall_50": "recall at 0.5",
}


def write_comparison(
    out_html: str | Path,
    *,
    compare_json: str | Path,
    train_logs: Mapping[str, str | Path] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the comparison to `out_html`, a single self-contained page.

    compare_json: written by `evaluation.compare.compare`. train_logs: training log by run name, for the runs that have
    one. DataError if compare.json is of another version or a log belongs to none of the runs.
    """
    result = load_compare(compare_json)
    names = [run.name for run in result.runs]
    logs = dict(train_logs or {})
    for name in logs:
        if name not in names:
            raise DataError(located(f"train log of unknown run {name!r}", expected=names))
    page = render(
        "comparison.html.j2",
        title=" vs. ".join(reversed(names)) if len(names) == 2 else f"{len(names)} runs on {result.dataset}",
        result=result,
        names=names,
        titles=TITLES,
        blocks=[(PROTOCOL_TITLES[name], block) for name, block in result.protocols.items()],
        difference_plot=_difference_plot,
        training=_training_plot(logs),
        provenance={**(provenance or {}), "runs": result.runs, "annotations": result.annotations},
    )
    write_text(out_html, page)


def _difference_plot(protocol: str, run: str, base: str, metrics: Mapping[str, Difference]) -> Markup:
    rows = [
        (TITLES[name], row.difference, row.interval, f"{row.difference:+.3f}, p {number(row.p)}")
        for name, row in metrics.items()
        if row.difference is not None
    ]
    return intervals(f"{protocol}: {run} minus {base}", rows)


def _training_plot(logs: Mapping[str, str | Path]) -> Markup | None:
    series = []
    for name, path in logs.items():
        loss = next((s for s in curves.losses(curves.read_log(path)) if s.name == "loss"), None)
        if loss is not None:
            series.append(curves.smooth(loss)._replace(name=name))
    return lines("Training loss", series, x_label="step", y_label="loss", log_y=True) if series else None
