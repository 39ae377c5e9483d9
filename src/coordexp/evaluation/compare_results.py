"""The types of compare.json: every field with its meaning and unit; `null` means that the value is undefined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from coordexp.evaluation.options import ProtocolName
from coordexp.evaluation.result_types import Count, Interval, Result, Sha256
from coordexp.evaluation.results import load

COMPARE_VERSION = 2


class ComparedRun(Result):
    """One of the compared runs."""

    name: str
    path: Annotated[str, Meta(description="path of its predictions")]
    format: Annotated[str, Meta(description="prediction format")]
    sha256: Sha256


class AnnotationsFile(Result):
    """The annotations that all runs are scored against."""

    path: str
    sha256: Sha256


class ValueWithInterval(Result):
    """A metric and its confidence interval."""

    value: float | None
    interval: Interval


class Difference(Result):
    """A metric of the run minus that of the baseline, over the same resampled images."""

    difference: float | None
    interval: Interval
    p: Annotated[float | None, Meta(description="two-sided bootstrap p-value; the null hypothesis is no difference")]


class CategoryChange(Result):
    """AP of a category for the baseline and for the run."""

    id: int
    name: str
    base: float
    run: float


class ImageChanges(Result):
    """Numbers of images whose F1 at IoU 0.5 is better, worse or equal."""

    better: Count
    worse: Count
    equal: Count


class RunDifference(Result):
    """A run compared with the baseline."""

    metrics: dict[str, Difference]
    categories: Annotated[list[CategoryChange], Meta(description="largest changes of AP first")]
    images: ImageChanges


class CalibrationSummary(Result):
    """Calibration of one run."""

    ece: Annotated[float | None, Meta(description="expected calibration error")]
    brier: Annotated[float | None, Meta(description="Brier score")]


class ProtocolComparison(Result):
    """All runs under one protocol."""

    base: Annotated[str, Meta(description="the baseline: run that the others are compared with")]
    runs: Annotated[dict[str, dict[str, ValueWithInterval]], Meta(description="metrics by run")]
    calibration: dict[str, CalibrationSummary]
    differences: Annotated[dict[str, RunDifference], Meta(description="difference from the baseline by run")]


class CompareResult(Result, kw_only=True):
    """compare.json: two or more runs on the same images; differences are run minus baseline."""

    schema_version: Literal[2] = COMPARE_VERSION
    dataset: str
    split: Annotated[str | None, Meta(description="evaluated split; null: unknown")]
    images: Annotated[Count, Meta(description="images scored, the same for every run")]
    images_annotated: Annotated[Count, Meta(description="images in the annotation file")]
    annotations: AnnotationsFile
    runs: Annotated[list[ComparedRun], Meta(min_length=2)]
    intervals: Annotated[str, Meta(description="how intervals were computed")]
    not_computed: Annotated[dict[str, str], Meta(description="requested protocols that were skipped, and why")]
    coco: ProtocolComparison | None
    lvis: ProtocolComparison | None

    @property
    def protocols(self) -> dict[ProtocolName, ProtocolComparison]:
        """Comparisons of the computed protocols, COCO first."""
        return {name: block for name in ("coco", "lvis") if (block := getattr(self, name)) is not None}


def load_compare(path: str | Path) -> CompareResult:
    """Read compare.json; DataError if it is missing, of another version or invalid."""
    return load(path, CompareResult, "a compare.json", COMPARE_VERSION, "compare again with this version of CoordExp")
