"""The leaderboard page: runs beside published figures, by table protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coordexp.evaluation.published_figures import PUBLISHED_FIGURES
from coordexp.evaluation.results import EvalResult, load_eval
from coordexp.evaluation.table_protocols import TABLE_PROTOCOLS, TableProtocol, table_row
from coordexp.reporting.report import render
from coordexp.runtime.io import write_text


@dataclass(frozen=True)
class LeaderboardRow:
    """A model with its values by column, in percent; `reasons` say why they are not comparable with the others."""

    model: str
    values: Mapping[str, float | None]
    source: str
    date: str
    ours: bool
    reasons: Sequence[str]


def write_leaderboard(out_html: str | Path, *, evaluated: Mapping[str, str | Path]) -> None:
    """Write the page to `out_html`; `evaluated` has the eval.json of every run by name.

    Tables without published figures are left out. Within a table, rows are sorted by the last column, best first;
    incomparable ones follow.
    """
    results = {name: load_eval(path) for name, path in evaluated.items()}
    names = {figure.protocol for figure in PUBLISHED_FIGURES}
    tables = [(TABLE_PROTOCOLS[name], _rows(name, results)) for name in TABLE_PROTOCOLS if name in names]
    page = render(
        "leaderboard.html.j2",
        title=f"{', '.join(results)} beside published figures",
        tables=tables,
        runs={
            name: {"dataset": result.dataset, "split": result.split, "images": result.counts.images}
            for name, result in results.items()
        },
        provenance={name: result.inputs for name, result in results.items()},
    )
    write_text(out_html, page)


def _rows(name: str, results: Mapping[str, EvalResult]) -> list[LeaderboardRow]:
    protocol: TableProtocol = TABLE_PROTOCOLS[name]
    rows = [
        LeaderboardRow(f.model, f.values, f.source, f.date, ours=False, reasons=[f.note] if f.note else [])
        for f in PUBLISHED_FIGURES
        if f.protocol == name
    ]
    for run, result in results.items():
        row = table_row(result, protocol)
        rows.append(LeaderboardRow(run, row.values, "this run", "", ours=True, reasons=row.reasons))
    sort_column = list(protocol.columns)[-1 if all(len(r.values) > 1 for r in rows if not r.ours) else 0]
    return sorted(rows, key=lambda row: (bool(row.reasons), -(row.values.get(sort_column) or -1), row.model))
