"""Training curves: read the training log, select and smooth its series, plot the losses as a PNG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from coordexp.evaluation.image_use import caution
from coordexp.reporting.figures import Series, drawing_style
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import atomic_open, read_jsonl

SCORE = re.compile(
    r"(eval_)?(train_)?(AP|AR|F1|coco/|lvis/|precision_50|recall_50|pointing_accuracy|answer_agreement)"
    r"|(eval_)?(token_acc|coord_accuracy|coord_probability)"
)
IMAGE_USE = re.compile(r"eval_(logprob_(right|other|blank)_image|image_gain)")
BIN_ERROR = re.compile(r"(eval_)?bin_error_.*")
# logged by trainers, neither loss nor score
OTHER = re.compile(
    r"epoch|learning_rate|lr|grad_norm|total_flos|percentage"
    r"|(global_step|max_steps|memory|train_|elapsed|remaining|num_).*|.*(per_second|runtime|speed|duplicates).*"
)


def read_log(path: str | Path) -> dict[str, Series]:
    """Series by name of a training log: JSON lines with an integer `step` and numbers by name, flat or one level deep.

    Lines without `step` are skipped. DataError if `step` is not a number or the file has no data point.
    """
    points: dict[str, tuple[list[float], list[float]]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        if not isinstance(row, dict) or "step" not in row:
            continue
        step = row["step"]
        if not _is_number(step):
            raise DataError(located("not a training step", file=path, line=number, field="step", found=step))
        for name, value in _flat(row):
            xs, ys = points.setdefault(name, ([], []))
            xs.append(float(step))
            ys.append(float(value))
    if not points:
        fix = 'expected lines such as {"step": 10, "loss": 3.2}'
        raise DataError(located("no line with a step and a number", file=path, fix=fix))
    return {name: Series(name, xs, ys) for name, (xs, ys) in points.items()}


def losses(log: dict[str, Series]) -> list[Series]:
    """The loss and its terms, the total first; series that are always zero are left out."""
    kept = [
        series
        for name, series in log.items()
        if not (_is_score(name) or any(kind.fullmatch(name) for kind in (OTHER, BIN_ERROR, IMAGE_USE)))
        and any(series.y)
    ]
    return sorted(kept, key=lambda s: (s.name != "loss", s.name))


def scores(log: dict[str, Series]) -> list[Series]:
    """Scores in [0, 1] that were logged during training."""
    return sorted((s for name, s in log.items() if _is_score(name)), key=lambda s: s.name)


def bin_errors(log: dict[str, Series]) -> list[Series]:
    """Errors of the expected coordinate, in bins of 1/1000 of the image size."""
    return sorted((s for name, s in log.items() if BIN_ERROR.fullmatch(name)), key=lambda s: s.name)


def image_use(log: dict[str, Series]) -> list[Series]:
    """Mean log probability of annotated coordinates with the right image, another one and a blank one, in nats."""
    return sorted((s for name, s in log.items() if name.startswith("eval_logprob_")), key=lambda s: s.name)


def image_use_caution(log: dict[str, Series]) -> str | None:
    """A sentence about a model that did not use the image at the last evaluation during training."""
    last = [log[name].y[-1] if name in log else None for name in ("eval_image_gain", "eval_answer_agreement")]
    return caution(*last)


def smooth(series: Series, points: int = 400) -> Series:
    """At most `points` points, each the mean of consecutive ones."""
    size = max(1, math.ceil(len(series.x) / points))
    chunks = [slice(i, i + size) for i in range(0, len(series.x), size)]
    return Series(series.name, [_mean(series.x[c]) for c in chunks], [_mean(series.y[c]) for c in chunks])


def plot_losses(train_log: str | Path, out_png: str | Path) -> None:
    """Plot the loss and its terms over the training steps as a PNG of 1200 x 700 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = losses(read_log(train_log))
    with drawing_style(), atomic_open(out_png) as handle:
        figure = Figure(figsize=(8, 4.67), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        for line in series:
            drawn = smooth(line)
            marker = "o" if len(drawn.x) == 1 else None
            axes.plot(drawn.x, drawn.y, label=line.name, linewidth=2.4 if line.name == "loss" else 1.2, marker=marker)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        if series:
            axes.legend()
        FigureCanvasAgg(figure).print_png(handle)


def _flat(row: dict) -> Iterable[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((inner, v) for inner, v in value.items() if _is_number(v))
        elif name != "step" and _is_number(value):
            yield name, value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_score(name: str) -> bool:
    return SCORE.match(name) is not None


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
