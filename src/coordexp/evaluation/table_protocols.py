"""Protocols of published tables: which metrics a table has, and which runs its figures can be compared with.

A protocol fixes the benchmark, the categories that the prompt names and the scorer. `table_row` takes the metrics of an
evaluated run and lists every difference from the protocol that makes the run incomparable with the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from coordexp.evaluation.options import PHRASES, ProtocolName
from coordexp.evaluation.phrase_results import PhraseResult
from coordexp.evaluation.result_types import ProtocolResult
from coordexp.evaluation.results import EvalResult

Value = float | None


@dataclass(frozen=True)
class Benchmark:
    """An annotation file; None for counts that the tables do not state.

    phrases: number of phrases of each split that has a table.
    """

    title: str
    images: int | None = None
    categories: int | None = None
    phrases: tuple[int, ...] = ()


BENCHMARKS = {
    "coco": Benchmark("COCO val2017", 5000, 80),
    "lvis": Benchmark("LVIS v1", None, 1203),
    "lvis_minival": Benchmark("LVIS v1 minival", 4809, 1203),
    "dense200": Benchmark("Dense200", 200, None),
    "visdrone": Benchmark("VisDrone-DET", None, 10),
    "refcoco": Benchmark("RefCOCO val, testA or testB", phrases=(10834, 5657, 5095)),
    "refcoco_plus": Benchmark("RefCOCO+ val, testA or testB", phrases=(10758, 5726, 4889)),
    "refcocog": Benchmark("RefCOCOg (UMD) val or test", phrases=(4896, 9602)),
}


@dataclass(frozen=True)
class TableProtocol:
    """How the figures of a table were computed.

    prompt: `predict.protocol` of comparable runs; None if any. block: protocol of eval.json that is used, or `phrases`.
    """

    title: str
    block: ProtocolName | Literal["phrases"]
    prompt: str | None
    columns: dict[str, Callable[[Any], Value]]
    benchmark: str | None = None


@dataclass(frozen=True)
class TableRow:
    """The metrics of a run by column, in percent, and why they are not comparable with the table."""

    values: dict[str, Value]
    reasons: list[str]


def _metric(name: str) -> Callable[[ProtocolResult | PhraseResult], Value]:
    return lambda block: block.metrics.get(name)


def _fixed(name: str) -> Callable[[ProtocolResult], Value]:
    return lambda block: block.fixed_ap.metrics.get(name) if block.fixed_ap else None


_PUBLISHED_F1: dict[str, Callable[[ProtocolResult], Value]] = {
    "F1@0.5": lambda block: block.f1.published.f1.iou_50,
    "F1@0.95": lambda block: block.f1.published.f1.iou_95,
    "F1@mean": lambda block: block.f1.published.f1.mean,
}
_AP_AND_F1 = {name: _metric(name) for name in ("AP", "AP50", "AP75")} | {
    "F1 (all predictions)": lambda block: block.f1.all_predictions.micro.iou_50,
    "F1 (prompted only)": lambda block: block.f1.prompted_only.macro.iou_50,
    "pointing": _metric("pointing_accuracy"),
}
_PHRASES = {
    "Acc@0.5": _metric("accuracy_50"),
    "mean IoU": _metric("mean_iou"),
    "N-acc": _metric("no_target_accuracy"),
    "Pr@(F1=1)": _metric("exact_50"),
}
_ACCURACY = {"Acc@0.5": _metric("accuracy_50")}
_CATEGORIES_IN_IMAGE = "image_categories"

TABLE_PROTOCOLS = {
    "rex_omni": TableProtocol("Rex-Omni and LocateAnything, COCO", "coco", _CATEGORIES_IN_IMAGE, _PUBLISHED_F1, "coco"),
    "rex_omni_lvis": TableProtocol(
        "Rex-Omni and LocateAnything, LVIS", "lvis", _CATEGORIES_IN_IMAGE, _PUBLISHED_F1, "lvis"
    ),
    "dense200": TableProtocol(
        "Rex-Omni and LocateAnything, Dense200", "coco", _CATEGORIES_IN_IMAGE, _PUBLISHED_F1, "dense200"
    ),
    "visdrone": TableProtocol(
        "Rex-Omni and LocateAnything, VisDrone", "coco", _CATEGORIES_IN_IMAGE, _PUBLISHED_F1, "visdrone"
    ),
    "coco_ap": TableProtocol(
        "COCO val2017, AP", "coco", "all_categories", {n: _metric(n) for n in ("AP", "AP50", "AP75")}, "coco"
    ),
    "lvis_minival": TableProtocol(
        "LVIS minival, fixed AP",
        "lvis",
        "all_categories",
        {name: _fixed(name) for name in ("AP", "APr", "APc", "APf")},
        "lvis_minival",
    ),
    "coco_categories_in_image": TableProtocol(
        "the prompt names the categories in the image", "coco", _CATEGORIES_IN_IMAGE, _AP_AND_F1
    ),
    "all_categories": TableProtocol("the prompt names every category", "coco", "all_categories", _AP_AND_F1),
    "open": TableProtocol("the prompt names no category", "coco", "open", _AP_AND_F1),
    "refcoco": TableProtocol("RefCOCO", PHRASES, PHRASES, _ACCURACY, "refcoco"),
    "refcoco_plus": TableProtocol("RefCOCO+", PHRASES, PHRASES, _ACCURACY, "refcoco_plus"),
    "refcocog": TableProtocol("RefCOCOg (UMD)", PHRASES, PHRASES, _ACCURACY, "refcocog"),
    "phrases": TableProtocol("one prompt per phrase", PHRASES, PHRASES, _PHRASES),
}


def table_row(result: EvalResult, protocol: TableProtocol) -> TableRow:
    """The row of a run in a table of this protocol."""
    block = result.phrases if protocol.block == PHRASES else result.protocols.get(protocol.block)
    if block is None:
        missing = "phrases were not evaluated" if protocol.block == PHRASES else f"{protocol.block} was not evaluated"
        reason = result.not_computed.get(protocol.block, missing)
        return TableRow(dict.fromkeys(protocol.columns), [reason])
    values = {name: compute(block) for name, compute in protocol.columns.items()}
    percent = {name: None if value is None else 100 * value for name, value in values.items()}
    return TableRow(percent, _differences(result, protocol))


def _differences(result: EvalResult, protocol: TableProtocol) -> list[str]:
    counts = result.counts
    reasons = []
    if protocol.benchmark is not None:
        benchmark = BENCHMARKS[protocol.benchmark]
        for name, expected, found in (
            ("categories", benchmark.categories, counts.categories),
            ("images", benchmark.images, counts.images),
        ):
            if expected not in (None, found):
                reasons.append(f"{found:,} {name} of {result.dataset}, {benchmark.title} has {expected:,}")
        phrases = result.phrases.phrases if result.phrases else 0
        if benchmark.phrases and phrases not in benchmark.phrases:
            expected = ", ".join(f"{n:,}" for n in benchmark.phrases)
            reasons.append(f"{phrases:,} phrases of {result.dataset}, {benchmark.title} has {expected}")
    if counts.subset:
        reasons.append(f"scored on part of the images: {counts.subset_note}")
    others = sorted(set(counts.prompt_protocols) - {protocol.prompt}) if protocol.prompt else []
    if others and result.inputs.predictions.format == "coordexp":
        reasons.append(f"predicted with protocol {', '.join(others)}; the table uses {protocol.prompt}")
    elif others:
        reasons.append(f"the prompt is not known; the table uses {protocol.prompt}")
    return reasons
