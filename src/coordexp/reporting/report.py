"""The report of one run: a page that is one file, needs no network and no script to be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from coordexp.evaluation.evaluate import SCHEMA_VERSION
from coordexp.reporting import curves, gallery
from coordexp.reporting.svg import Series, bars, lines
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, sha256_file, write_text

TEMPLATES = Path(__file__).parent / "templates"
RECALLS = [i / 100 for i in range(101)]
NAMES = {"coco": "COCO", "lvis": "LVIS"}
FALSE_POSITIVES = {
    "duplicate": "found twice",
    "poor_box": "box does not fit",
    "wrong_category": "other category",
    "background": "nothing there",
    "unmapped": "no such category",
}


def write(
    out_html: str | Path,
    *,
    eval_json: str | Path,
    predictions: str | Path,
    records_jsonl: str | Path,
    train_log: str | Path | None,
    provenance: dict[str, Any],
    gallery: int,  # the configuration's name for it
    title: str | None = None,
) -> None:
    """Write the report of one run to `out_html`.

    eval_json: what `evaluate` wrote. predictions: predictions.jsonl that it was made from. records_jsonl:
    pixel-space records of the evaluated images; their paths are relative to it. train_log: JSON lines of
    {step, loss, terms...}, or None. provenance: anything that JSON can hold. gallery: how many images.
    DataError when the files do not belong together or a image cannot be read.
    """
    result = load_result(eval_json)
    context = {
        "title": title or f"{result['dataset']} · {result['split']}",
        "result": result,
        "blocks": [(NAMES[name], result[name]) for name in ("coco", "lvis") if result[name]],
        "training": _training(train_log),
        "mistakes": _mistakes(result),
        "galleries": _galleries(result, Path(predictions), Path(records_jsonl), gallery),
        "provenance": _provenance(provenance, result, records_jsonl, train_log),
    }
    write_text(out_html, render("report.html.j2", **context))


def headline(eval_json: str | Path) -> str:
    """The numbers that one looks at first, as lines of text."""
    result = load_result(eval_json)
    counts = result["counts"]
    rows = [f"{result['dataset']} {result['split']}: {counts['images']} images, {counts['objects']} objects"]
    for name in ("coco", "lvis"):
        if result[name]:
            metrics, f1 = result[name]["metrics"], result[name]["f1"]["all_predictions"]["micro"]["0.50"]
            numbers = "  ".join(f"{key} {number(metrics[key])}" for key in ("AP", "AP50", "AP75"))
            rows.append(f"{NAMES[name]}: {numbers}  F1@.5 {number(f1)}")
    return "\n".join(rows)


def load_result(eval_json: str | Path) -> dict[str, Any]:
    """eval.json; DataError when it is of another schema version."""
    result = read_json(eval_json)
    found = result.get("schema_version") if isinstance(result, dict) else None
    if found != SCHEMA_VERSION:
        fix = "evaluate again with this version"
        problem = "not an eval.json of this version"
        raise DataError(
            located(problem, file=eval_json, field="schema_version", expected=SCHEMA_VERSION, found=found, fix=fix)
        )
    return result


def check_evaluated(predictions: str | Path, numbers: dict[str, Any]) -> None:
    """DataError unless `numbers`, an eval.json, were made from the file `predictions` as it is."""
    if sha256_file(predictions) != numbers["inputs"]["predictions"]["sha256"]:
        fix = "give the predictions that were evaluated, or evaluate these"
        raise DataError(located("not the file that eval.json was made from", file=predictions, fix=fix))


def render(template: str, **context: Any) -> str:
    """A page from a template of this package with styles and script written into it."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "percent": percent, "json": _json}
    environment.globals |= {
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        "precision_plot": _precision_plot,
        "reliability_plot": _reliability_plot,
        "bar_plot": _bar_plot,
    }
    return environment.get_template(template).render(**context)


def number(value: float | None) -> str:
    """A score with three decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _training(train_log: str | Path | None) -> list[Markup]:
    if train_log is None:
        return []
    log = curves.read_log(train_log)
    plots = []
    loss = [curves.smooth(s) for s in curves.losses(log)]
    if loss:
        plots.append(lines("Loss over training steps", loss, x_label="step", y_label="loss", log_y=True))
    errors = [curves.smooth(s) for s in curves.bin_errors(log)]
    if errors:
        plots.append(
            lines("Error of the expected coordinate", errors, x_label="step", y_label="bins of 1000", log_y=True)
        )
    scores = [curves.smooth(s) for s in curves.scores(log)]
    if scores:
        plots.append(lines("Scores over training steps", scores, x_label="step", y_label="score", y_range=(0, 1)))
    return plots


def _precision_plot(name: str, block: dict) -> Markup:
    series = [Series(f"IoU {key}", RECALLS, values) for key, values in block["curves"].items()]
    title = f"{name}: precision over recall, mean of the categories"
    return lines(title, series, x_label="recall", y_label="precision", x_range=(0, 1), y_range=(0, 1))


def _reliability_plot(name: str, block: dict) -> Markup:
    filled = [b for b in block["calibration"]["bins"] if b["count"]]
    series = [Series("boxes", [b["mean_score"] for b in filled], [b["share_right"] for b in filled])]
    title = f"{name}: share of right boxes (IoU .5) over their score"
    options = {"x_range": (0, 1), "y_range": (0, 1), "diagonal": True, "markers": True}
    return lines(title, series, x_label="score", y_label="share right", **options)


def _bar_plot(title: str, rows: list[dict], name: str, value: str, count: str) -> Markup:
    """Bars of the rows that have a number; the text behind says it and how many stand behind it."""
    known = [row for row in rows if row[value] is not None]
    texts = [(str(row[name]), row[value], f"{number(row[value])} ({row[count]:,})") for row in known]
    return bars(title, texts, highest=1.0)


def _mistakes(result: dict) -> Markup:
    kinds = result["images"]["false_positives_by_kind"]
    rows = [(FALSE_POSITIVES[kind], count, f"{count:,}") for kind, count in kinds.items()]
    return bars("False positives at IoU .5 by what is wrong", rows)


def _galleries(result: dict, predictions: Path, records: Path, count: int) -> list[tuple[str, list[gallery.Card]]]:
    chosen = gallery.choose(result["images"], count)
    wanted = gallery.ids_of(chosen)
    if not wanted:
        return []
    check_evaluated(predictions, result)
    found = gallery.find_records(records, wanted), gallery.find_predictions(predictions, wanted)
    return gallery.cards(chosen, *found, records.parent, result)


def _provenance(provenance: dict, result: dict, records: str | Path, train_log: str | Path | None) -> dict[str, Any]:
    files = {name: entry["sha256"] for name, entry in result["inputs"].items()}
    files["records"] = sha256_file(records)
    if train_log is not None:
        files["train log"] = sha256_file(train_log)
    return {
        **provenance,
        "files_sha256": files,
        "evaluation": {k: result[k] for k in ("options", "software", "tie_rule")},
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
