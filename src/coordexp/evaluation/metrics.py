"""Registry of metrics: each appears in eval.json, in `coordexp summary` and in the report.

A metric is a function of a `ScoredProtocol` that returns a float, None if it is undefined, or a dict of these. The
first line of its docstring describes it. Add one here or in a plug-in file (`plugins` in the configuration):

    from coordexp.evaluation.metrics import METRICS

    @METRICS.register("detections_per_image")
    def detections_per_image(protocol):
        \"\"\"Mean number of detections per image.\"\"\"
        return len(protocol.detections) / protocol.ground_truth.num_images
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.registry import Registry

if TYPE_CHECKING:  # recipes name metrics, and must not depend on the scoring
    from coordexp.evaluation.protocol import ScoredProtocol

Value = float | None
Metric = Callable[["ScoredProtocol"], Value | dict[str, Value]]
METRICS: Registry[Metric] = Registry("metric")


class ValueNames:
    """The values of metrics that every evaluation has, by which the best checkpoint may be selected.

    Those of a metric with one value are its name; a dict-valued metric lists them in `always`.
    """

    kind = "metric value"

    def names(self) -> list[str]:
        """Names as in eval.json, in order of registration."""
        return [name for metric in METRICS.names() for name in getattr(METRICS[metric], "always", (metric,))]

    def __contains__(self, name: object) -> bool:
        return name in self.names()


VALUE_NAMES = ValueNames()
PHRASE_METRICS = {
    "accuracy_50": "fraction of the phrases with one target whose highest-scoring box has IoU >= 0.5 (Acc@0.5)",
    "accuracy_75": "the same at IoU >= 0.75",
    "mean_iou": "mean IoU of the highest-scoring box with the target, for phrases with one target; 0 without a box",
    "precision_50": "fraction of the boxes that match a target at IoU 0.5, for phrases with several targets",
    "recall_50": "fraction of the targets that a box matches at IoU 0.5, for phrases with several targets",
    "F1_50": "harmonic mean of this precision and recall",
    "no_target_accuracy": "fraction of the phrases without a target with an answer that has no box and is complete "
    "(N-acc of gRefCOCO)",
    "exact_50": "fraction of all phrases whose targets are all matched at IoU 0.5, without a false positive "
    "(Pr@(F1=1, IoU>=0.5) of gRefCOCO)",
}
PHRASE_PREFIX = "phrase_"  # of these metrics where they are listed with those of detection


class CheckpointMetrics:
    """The values by which the best checkpoint may be selected: of detection, or of phrases."""

    kind = "metric value"

    def names(self) -> list[str]:
        """`VALUE_NAMES`, then the metrics of phrases with their prefix."""
        return [*VALUE_NAMES.names(), *(f"{PHRASE_PREFIX}{name}" for name in PHRASE_METRICS)]

    def __contains__(self, name: object) -> bool:
        return name in self.names()


CHECKPOINT_METRICS = CheckpointMetrics()


def always(*names: str) -> Callable[[Metric], Metric]:
    """Decorator that declares the keys which a dict-valued metric has in every evaluation."""

    def declare(metric: Metric) -> Metric:
        metric.always = names  # type: ignore[attr-defined]
        return metric

    return declare


@METRICS.register("ap")
@always("AP", "AP50", "AP75")
def average_precision(protocol: ScoredProtocol) -> dict[str, Value]:
    """Average precision (COCOeval, lvis-api), over IoU 0.50:0.95 or at one IoU, by object size and frequency."""
    return {name: value for name, value in protocol.ap_scores.metrics.items() if name.startswith("AP")}


@METRICS.register("ar")
@always()
def average_recall(protocol: ScoredProtocol) -> dict[str, Value]:
    """Average recall over IoU 0.50:0.95 (COCOeval, lvis-api), by number of detections and object size."""
    return {name: value for name, value in protocol.ap_scores.metrics.items() if name.startswith("AR")}


@METRICS.register("f1")
@always("F1_50_micro", "F1_50_macro", "F1_micro")
def f1(protocol: ScoredProtocol) -> dict[str, Value]:
    """F1 of all predictions without a score threshold, at IoU 0.5 or averaged over 0.50:0.95."""
    return {name: protocol.values[name] for name in ("F1_50_micro", "F1_50_macro", "F1_micro")}


@METRICS.register("precision_recall")
@always("precision_50", "recall_50")
def precision_recall(protocol: ScoredProtocol) -> dict[str, Value]:
    """Precision and recall of all predictions without a score threshold, at IoU 0.5."""
    return {name: protocol.values[name] for name in ("precision_50", "recall_50")}


@METRICS.register("pointing_accuracy")
def pointing(protocol: ScoredProtocol) -> Value:
    """Pointing game: how often a category's best box is centred on an object."""
    return protocol.pointing_accuracy


@METRICS.register("presence")
@always()
def presence(protocol: ScoredProtocol) -> dict[str, Value]:
    """Detections of absent categories per image, and correlation (MCC) of predicted with actual categories."""
    return protocol.presence


def compute_metrics(protocol: ScoredProtocol) -> tuple[dict[str, Value], dict[str, str]]:
    """Values and descriptions of all registered metrics by name; a dict-valued metric contributes all of its keys.

    ConfigError for a metric that returns something other than numbers, or a name that another metric uses.
    """
    values: dict[str, Value] = {}
    descriptions: dict[str, str] = {}
    for registered in METRICS.names():
        metric = METRICS[registered]
        result = metric(protocol)
        for name, value in (result if isinstance(result, dict) else {registered: result}).items():
            if name in values:
                raise ConfigError(located(f"metric {registered!r}: {name!r} is already the name of another metric"))
            values[name] = _number(registered, name, value)
            descriptions[name] = (inspect.getdoc(metric) or registered).splitlines()[0]
    return values, descriptions


def _number(metric: str, name: str, value: object) -> Value:
    """`value` as a float; None for None and nan."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        expected = "a number, None, or a dict of these"
        raise ConfigError(located(f"metric {metric!r}: {name!r}", expected=expected, found=value)) from error
    if math.isinf(number):
        raise ConfigError(located(f"metric {metric!r}: {name!r} is infinite", fix="return None if it is undefined"))
    return None if math.isnan(number) else number
