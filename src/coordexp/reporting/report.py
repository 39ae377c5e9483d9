"""The report of one run: a single self-contained HTML page that needs no network."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from coordexp.evaluation.options import PROTOCOL_TITLES
from coordexp.evaluation.phrase_results import PhraseResult
from coordexp.evaluation.result_types import CategoryRow, DensityRow, FrequencyRow, ProtocolResult, SizeRow
from coordexp.evaluation.results import EvalResult, load_eval
from coordexp.reporting import curves, gallery
from coordexp.reporting.classes import BACKGROUND, THRESHOLDS, ClassResults, class_results
from coordexp.reporting.figures import Series, bars, lines
from coordexp.reporting.phrase_gallery import phrase_cards
from coordexp.reporting.provenance import selection, stage_codes
from coordexp.reporting.run_facts import SplitCounts, cautions, header_facts, split_counts
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import sha256_file, write_text
from coordexp.runtime.local_paths import replace_paths, shown

TEMPLATES = Path(__file__).parent / "templates"
RECALLS = [i / 100 for i in range(101)]
ERROR_LABELS = {
    "duplicate": "duplicate",
    "localisation": "inaccurate box",
    "classification": "wrong category",
    "background": "background",
    "unmapped": "unknown category",
}
BreakdownRow = SizeRow | DensityRow | FrequencyRow | CategoryRow


def write_report(
    out_html: str | Path,
    *,
    eval_json: str | Path,
    predictions: str | Path,
    records_jsonl: str | Path,
    train_log: str | Path | None,
    provenance: Mapping[str, Any],
    num_examples: int,
    title: str | None = None,
) -> None:
    """Write the report of one run to `out_html`.

    eval_json: written by `evaluate`. predictions: the predictions.jsonl that was evaluated. records_jsonl: pixel-space
    records of the evaluated images, with image paths relative to the file. train_log: JSON lines of training metrics,
    or None. provenance: JSON-compatible values; `training` is the training manifest. num_examples: number of images.

    DataError if the files do not belong together or an image cannot be read.
    """
    result = load_eval(eval_json)
    check_evaluated(predictions, result.inputs.predictions.sha256)
    files = Path(predictions), Path(records_jsonl)
    log = {} if train_log is None else curves.read_log(train_log)
    warnings = cautions(result, provenance)
    if result.phrases is None:
        template, sections = "report.html.j2", _detection_sections(result, *files, num_examples)
        warnings += _training_cautions(log)
    else:
        template, sections = "phrases.html.j2", _phrase_sections(result.phrases, *files, num_examples)
    training = provenance.get("training", {})
    page = render(
        template,
        title=title or _name(result, " · "),
        result=result,
        training=_training_plots(log),
        facts=replace_paths(header_facts(Path(eval_json), provenance), shown),
        cautions=warnings,
        gallery_categories=_distinct(sections["galleries"], "category"),
        gallery_errors=_distinct(sections["galleries"], "error"),
        selection=selection(training, result.split),
        stages=stage_codes(training, result),
        provenance=_provenance(provenance, result, records_jsonl, train_log),
        **sections,
    )
    write_text(out_html, page)


def _detection_sections(result: EvalResult, predictions: Path, records: Path, num_examples: int) -> dict[str, Any]:
    """What only the page of a run that detects categories shows; arguments as in `write_report`."""
    classes = class_results(predictions, records, result)
    splits = split_counts(records)
    return {
        "blocks": [(PROTOCOL_TITLES[name], block) for name, block in result.protocols.items()],
        "metrics": _metric_rows(result),
        "error_plot": _error_plot(result),
        "classes": classes,
        "thresholds": THRESHOLDS,
        "matrix": _matrix_rows(classes),
        "class_plots": _class_plots(classes),
        "splits": splits,
        "data_rows": _data_rows(splits),
        "galleries": _galleries(result, predictions, records, num_examples),
        "ranking": f"Images ranked by F1 at IoU 0.5 under the {result.examples.protocol.upper()} protocol.",
    }


def _phrase_sections(block: PhraseResult, predictions: Path, records: Path, num_examples: int) -> dict[str, Any]:
    """What only the page of a run that answers phrases shows; arguments as in `write_report`."""
    return {
        "galleries": phrase_cards(block, predictions, records, num_examples),
        "ranking": "Phrases with several targets come first among exact answers, those with the most errors among "
        "others.",
    }


def headline(eval_json: str | Path) -> str:
    """Every metric of a run as a text table, one column per protocol."""
    result = load_eval(eval_json)
    if result.phrases is not None:
        return _phrase_headline(result, result.phrases)
    counts = result.counts
    blocks = result.protocols
    names = [name for group in _metric_groups(result).values() for name in group]
    rows = [(name, *(block.metrics.get(name) for block in blocks.values())) for name in names]
    width = max(len(name) for name, *_ in rows)
    titles = " ".join(f"{PROTOCOL_TITLES[name]:>7}" for name in blocks)
    return "\n".join(
        [
            f"{_name(result, ' ')}: {counts.images} images, {counts.objects} objects, {counts.detections} detections",
            f"{'':{width}} {titles}",
            *(f"{name:{width}} {' '.join(f'{number(value):>7}' for value in values)}" for name, *values in rows),
        ]
    )


def _phrase_headline(result: EvalResult, block: PhraseResult) -> str:
    """The metrics of phrases with their intervals, the baselines, and counts by number of targets."""
    lines = [f"{_name(result, ' ')}: {result.counts.images} images, {block.phrases} phrases"]
    for name, value in block.metrics.items():
        span = block.intervals.values.get(name)
        lines.append(f"{name:18} {number(value):>7}" + (f"  [{number(span[0])}, {number(span[1])}]" if span else ""))
    for name, value in block.baselines.items():
        lines.append(f"baseline: accuracy_50 {number(value)} with the {name.replace('_', ' ')} as every answer")
    lines.append(
        f"{'targets':8} {'phrases':>8} {'boxes':>8} {'true pos.':>10} {'false pos.':>10} {'exact':>8} {'truncated':>10}"
    )
    for row in block.by_targets:
        counted = f"{row.phrases:8} {row.boxes:8} {row.true_positives:10} {row.false_positives:10} {row.exact:8}"
        lines.append(f"{row.targets:8} {counted} {row.truncated:10}")
    return "\n".join(lines)


def losses(eval_json: str | Path) -> list[str]:
    """What an evaluation left out or could not read, one line per kind; empty if nothing."""
    result = load_eval(eval_json)
    counts, phrases = result.counts, result.phrases
    by_reason = {
        "annotations left out": counts.annotations_skipped,
        "problems in answers": counts.problems,
    }
    lines = [
        f"{name}: {', '.join(f'{n} {reason}' for reason, n in n_of.items())}"
        for name, n_of in by_reason.items()
        if n_of
    ]
    if counts.unmapped_detections:
        kind = "known category" if phrases is None else "phrase that was asked"
        lines.append(f"detections without a {kind}: {counts.unmapped_detections} of {counts.detections}")
    if phrases is not None and phrases.without_record:
        lines.append(f"annotated phrases without a record, which are not scored: {phrases.without_record}")
    if phrases is not None and (truncated := sum(row.truncated for row in phrases.by_targets)):
        lines.append(f"phrases with a truncated answer, which is wrong without a box: {truncated} of {phrases.phrases}")
    if counts.subset_note:
        lines.append(counts.subset_note)
    return lines


def check_evaluated(predictions: str | Path, sha256: str) -> None:
    """DataError unless `predictions` is the file with this hash, the one that eval.json was computed from."""
    if sha256_file(predictions) != sha256:
        fix = "pass the predictions that were evaluated, or evaluate these"
        raise DataError(located("not the file that eval.json was computed from", file=predictions, fix=fix))


def render(template: str, **context: Any) -> str:
    """Render a template of this package, with style sheet and script inlined."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "percent": percent, "count": count, "json": _json}
    environment.globals |= {
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        "precision_plot": _precision_plot,
        "reliability_plot": _reliability_plot,
        "bar_plot": _bar_plot,
    }
    return environment.get_template(template).render(**context)


def number(value: float | None) -> str:
    """A score with three decimals; a dash if undefined."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction in percent; a dash if undefined."""
    return "–" if value is None else f"{100 * value:.1f} %"


def count(value: int) -> str:
    """An integer with thousands separators."""
    return f"{value:,}"


def _name(result: EvalResult, separator: str) -> str:
    """Dataset and split; the split once if the dataset is named after it, as in `instances_val2017`."""
    if result.split is None:
        return result.dataset
    named = re.search(rf"(?<![a-z]){re.escape(result.split)}(?![a-z])", result.dataset)
    return result.dataset if named else f"{result.dataset}{separator}{result.split}"


def _metric_groups(result: EvalResult) -> dict[str, list[str]]:
    """Names of all metrics by their description."""
    groups: dict[str, list[str]] = {}
    for block in result.protocols.values():
        for name, description in block.metric_descriptions.items():
            if name not in groups.setdefault(description, []):
                groups[description].append(name)
    return groups


def _metric_rows(result: EvalResult) -> list[dict[str, Any]]:
    """Rows of the metrics table; the first row of each group has the number of rows that share its description."""
    rows = []
    blocks = result.protocols.values()
    for description, names in _metric_groups(result).items():
        for i, name in enumerate(names):
            values = [(block.metrics.get(name), block.intervals.values.get(name)) for block in blocks]
            rows.append(
                {"name": name, "values": values, "description": description, "group_size": 0 if i else len(names)}
            )
    return rows


def _training_cautions(log: dict[str, Series]) -> list[str]:
    text = curves.image_use_caution(log)
    return [] if text is None else [f"{text[0].upper()}{text[1:]} (last evaluation during training)."]


def _training_plots(log: dict[str, Series]) -> list[Markup]:
    options = {
        "Training loss": (curves.losses(log), {"y_label": "loss", "log_y": True}),
        "Error of the expected coordinate": (curves.bin_errors(log), {"y_label": "bins (of 1000)", "log_y": True}),
        "Scores during training": (curves.scores(log), {"y_label": "score", "y_range": (0, 1)}),
        "Annotated coordinates with the right, another and a blank image": (
            curves.image_use(log),
            {"y_label": "mean log probability (nats)"},
        ),
    }
    return [
        lines(title, [curves.smooth(s) for s in series], x_label="step", **settings)
        for title, (series, settings) in options.items()
        if series
    ]


def _precision_plot(name: str, block: ProtocolResult) -> Markup:
    values = {"IoU 0.50": block.curves.iou_50, "IoU 0.75": block.curves.iou_75, "IoU 0.50:0.95": block.curves.mean}
    series = [Series(label, RECALLS, precision) for label, precision in values.items()]
    title = f"{name}: precision over recall, mean over categories"
    return lines(title, series, x_label="recall", y_label="precision", x_range=(0, 1), y_range=(0, 1))


def _reliability_plot(name: str, block: ProtocolResult) -> Markup:
    filled = [b for b in block.calibration.bins if b.count]
    series = [Series("detections", [b.mean_score for b in filled], [b.precision for b in filled])]
    title = f"{name}: reliability of the scores (IoU 0.5)"
    options = {"x_range": (0, 1), "y_range": (0, 1), "diagonal": True, "markers": True}
    return lines(title, series, x_label="score", y_label="precision", **options)


def _bar_plot(title: str, rows: list[BreakdownRow], label: str, value: str, count_field: str) -> Markup:
    """Bars of field `value` for the rows where it is defined, labelled with the value and the count behind it."""
    shown = [
        (str(getattr(row, label)), getattr(row, value), getattr(row, count_field))
        for row in rows
        if getattr(row, value) is not None
    ]
    return bars(title, [(name, v, f"{number(v)} ({n:,})") for name, v, n in shown], highest=1.0)


def _error_plot(result: EvalResult) -> Markup:
    rows = [(ERROR_LABELS[kind], n, f"{n:,}") for kind, n in result.examples.false_positives_by_type.items()]
    return bars("False positives at IoU 0.5 by error type", rows)


def _galleries(
    result: EvalResult, predictions: Path, records: Path, num_examples: int
) -> list[tuple[str, list[gallery.Card]]]:
    chosen = gallery.choose(result.examples, num_examples)
    image_ids = {image_id for _, image_id in chosen}
    if not image_ids:
        return []
    return gallery.cards(
        chosen,
        gallery.find_records(records, image_ids),
        gallery.find_predictions(predictions, image_ids),
        records.parent,
        result,
    )


def _distinct(galleries: list[tuple[str, list[gallery.Card]]], field: str) -> list[str]:
    """The values of a field of all shapes of the gallery, in alphabetical order."""
    shapes = (shape for _, cards in galleries for card in cards for shape in card.shapes)
    return sorted({getattr(shape, field) for shape in shapes} - {""})


def _matrix_rows(classes: ClassResults) -> list[dict[str, Any]]:
    """Rows of the confusion matrix: name, number, and (count, fraction of the row) per cell."""
    rows = []
    for number, (name, counts) in enumerate(
        zip([*classes.labels, BACKGROUND], classes.matrix.tolist(), strict=True), 1
    ):
        total = sum(counts) or 1
        rows.append({"name": name, "number": number, "cells": [(value, value / total) for value in counts]})
    return rows


def _class_plots(classes: ClassResults) -> list[Markup]:
    options = {"x_label": "recall", "y_label": "precision", "x_range": (0, 1), "y_range": (0, 1)}
    title = "Precision over recall by category, IoU 0.5"
    numbers = [f" ({n} of {len(classes.plots)})" if len(classes.plots) > 1 else "" for n in range(1, 99)]
    return [lines(f"{title}{n}", series, **options) for n, series in zip(numbers, classes.plots, strict=False)]


def _data_rows(splits: list[SplitCounts]) -> list[tuple[str, list[int]]]:
    """Number of objects per split of every category, most frequent first."""
    total = sum((split.categories for split in splits), start=Counter())
    return [(name, [split.categories[name] for split in splits]) for name, _ in total.most_common()]


def _provenance(
    provenance: Mapping[str, Any], result: EvalResult, records: str | Path, train_log: str | Path | None
) -> dict[str, Any]:
    files = {"predictions": result.inputs.predictions.sha256, "annotations": result.inputs.annotations.sha256}
    files["records"] = sha256_file(records)
    if train_log is not None:
        files["train log"] = sha256_file(train_log)
    made_by = result.inputs.predictions.made_by
    entries = {
        **provenance,
        "prediction": "not recorded" if made_by is None else made_by,
        "evaluation": {
            "options": result.options,
            "software": result.software,
            "revision": result.revision,
            "tie_rule": result.tie_rule,
        },
        "files (SHA-256)": files,
    }
    return replace_paths(msgspec.to_builtins(entries), shown)


def _json(value: Any) -> str:
    return json.dumps(replace_paths(msgspec.to_builtins(value), shown), indent=2, ensure_ascii=False)
