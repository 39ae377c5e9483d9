"""Per-category results of a report: precision and recall by score threshold, confusions, and precision-recall curves.

They are computed from the records at IoU 0.5, so objects that the conversion left out do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordexp.datasets.categories import Category
from coordexp.evaluation.box_pairs import near_overlaps
from coordexp.evaluation.detections import DetectionTable, collect_detections, read_predictions
from coordexp.evaluation.greedy_matching import Matches, match
from coordexp.evaluation.ground_truth import GroundTruth, ground_truth_from_records
from coordexp.evaluation.label_mapping import Label
from coordexp.evaluation.results import EvalResult
from coordexp.records import Record, read_records
from coordexp.reporting.figures import Series

THRESHOLDS = [round(0.05 * i, 2) for i in range(20)]
LISTED = 20  # categories of the confusion matrix; the others are one row and column
PER_PLOT, PLOTS = 6, 4  # precision-recall curves
OTHER, BACKGROUND = "other categories", "background"


@dataclass(frozen=True)
class CategoryScores:
    """One category: number of objects, AP, and counts per threshold of THRESHOLDS."""

    name: str
    objects: int
    AP: float | None
    true_positives: list[int]
    false_positives: list[int]

    def precision(self, threshold: int) -> float | None:
        """Fraction of the detections that match an object; None without detections."""
        found = self.true_positives[threshold] + self.false_positives[threshold]
        return self.true_positives[threshold] / found if found else None

    def recall(self, threshold: int) -> float | None:
        """Fraction of the objects that are detected; None without objects."""
        return self.true_positives[threshold] / self.objects if self.objects else None


@dataclass(frozen=True)
class ClassResults:
    """What the report shows by category.

    threshold: index in THRESHOLDS of the best F1 over all categories. matrix: [K + 1, K + 1] counts of ground truth
    (rows, the last one: no object) by prediction (columns, the last one: missed), categories as in `labels`.
    plots: groups of precision-recall curves.
    """

    categories: list[CategoryScores]
    threshold: int
    labels: list[str]
    matrix: np.ndarray
    plots: list[list[Series]]


def class_results(predictions: Path, records: Path, result: EvalResult) -> ClassResults:
    """Match all predictions with the records of their images."""
    rows = {row.image_id: row for _, row in read_predictions(predictions)}
    found = [record for record in read_records(records, "pixel") if record.metadata.image_id in rows]
    federated = result.examples.protocol == "lvis"
    names = {row.id: row.name for block in result.protocols.values() for row in block.by_category}
    ground_truth = record_ground_truth(found, result, names)
    index = {category.id: k for k, category in enumerate(ground_truth.categories)}

    def label(desc: str) -> Label:
        category_id = result.mapping.by_description.get(desc)
        return Label(None, "unknown") if category_id is None else Label(index[category_id], "exact")

    named = ((f"image {image_id}", rows[image_id]) for image_id in ground_truth.image_ids)
    detections, _ = collect_detections(named, ground_truth, label)
    matches = match(ground_truth, detections, federated=federated, thresholds=np.array([0.5]))
    aps = {row.id: row.AP for row in result.protocols[result.examples.protocol].by_category}
    categories, curves = _by_category(ground_truth, detections, matches, aps)
    threshold = _best_threshold(categories)
    labels, matrix = confusion_matrix(ground_truth, detections, matches, THRESHOLDS[threshold])
    shown = curves[: PER_PLOT * PLOTS]
    plots = [shown[i : i + PER_PLOT] for i in range(0, len(shown), PER_PLOT)]
    return ClassResults(categories, threshold, labels, matrix, plots)


def record_ground_truth(records: list[Record], result: EvalResult, names: dict[int, str]) -> GroundTruth:
    """Ground truth of these records, with every category that a record or a description refers to."""
    ids = {obj.category_id for record in records for obj in record.objects}
    ids |= {i for i in result.mapping.by_description.values() if i is not None}
    ids |= {i for r in records for i in (*r.metadata.neg_category_ids, *r.metadata.not_exhaustive_category_ids)}
    categories = [Category(id=i, name=names.get(i, str(i))) for i in sorted(ids)]
    return ground_truth_from_records(records, categories, federated=True)


def _by_category(
    ground_truth: GroundTruth, detections: DetectionTable, matches: Matches, aps: dict[int, float | None]
) -> tuple[list[CategoryScores], list[Series]]:
    """Scores and precision-recall curve of every category with objects or detections, most objects first."""
    objects = np.bincount(ground_truth.category[matches.object_counted], minlength=ground_truth.num_categories)
    category, score = detections.category[matches.row], detections.score[matches.row]
    correct, judged = matches.matched[:, 0] & ~matches.ignored[:, 0], ~matches.ignored[:, 0]
    scores, curves = [], []
    for k in sorted(range(len(objects)), key=lambda k: (-objects[k], ground_truth.categories[k].name)):
        own = np.flatnonzero((category == k) & judged)  # by falling score
        if not objects[k] and not len(own):
            continue
        above = score[own][None] >= np.array(THRESHOLDS)[:, None]
        positive = (above & correct[own]).sum(axis=1)
        entry = ground_truth.categories[k]
        counts = positive.tolist(), (above.sum(axis=1) - positive).tolist()
        scores.append(CategoryScores(entry.name, int(objects[k]), aps.get(entry.id), *counts))
        if objects[k]:
            curves.append(_curve(entry.name, correct[own], int(objects[k])))
    return scores, curves


def _curve(name: str, correct: np.ndarray, objects: int) -> Series:
    """Precision over recall: the highest precision at this or a higher recall, 0 where it is not reached."""
    hits = np.cumsum(correct)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    recalls = np.linspace(0, 1, 101)
    at = np.searchsorted(hits / objects, recalls, side="left")
    values = [float(precision[i]) if i < len(precision) else 0.0 for i in at]
    return Series(name, recalls.tolist(), values)


def _best_threshold(categories: list[CategoryScores]) -> int:
    positive = np.sum([c.true_positives for c in categories] or [[0] * len(THRESHOLDS)], axis=0)
    wrong = np.sum([c.false_positives for c in categories] or [[0] * len(THRESHOLDS)], axis=0)
    objects = sum(c.objects for c in categories)
    return int(np.argmax(2 * positive / np.maximum(positive + wrong + objects, 1)))


def confusion_matrix(
    ground_truth: GroundTruth, detections: DetectionTable, matches: Matches, threshold: float
) -> tuple[list[str], np.ndarray]:
    """Labels and counts (see `ClassResults`) of the detections with at least this score.

    A detection is assigned to at most one object with IoU >= 0.5: of its category if possible, otherwise the one with
    the highest IoU. Detections that are not judged, and those of no known category, are left out.
    """
    rows = np.sort(matches.row[~matches.ignored[:, 0]])
    rows = rows[detections.score[rows] >= threshold]
    used = np.flatnonzero(matches.object_counted)
    pairs: list[tuple[bool, float, int, int]] = []
    groups = detections.box[rows], detections.image[rows], ground_truth.box[used], ground_truth.image[used]
    for i, j, overlap in near_overlaps(*groups, 0.5):
        same = detections.category[rows[i]] == ground_truth.category[used[j]]
        pairs += zip((~same).tolist(), (-overlap).tolist(), i.tolist(), j.tolist(), strict=True)
    label_of = _shown_categories(ground_truth, detections.category[rows], ground_truth.category[used])
    names = [ground_truth.categories[k].name for k in label_of]
    folded = len(label_of) < len(set(detections.category[rows]) | set(ground_truth.category[used]))
    names += [OTHER] if folded else []
    last = len(names)
    matrix = np.zeros((last + 1, last + 1), dtype=int)
    free_detections, free_objects = np.ones(len(rows), dtype=bool), np.ones(len(used), dtype=bool)
    for _, _, i, j in sorted(pairs):
        if free_detections[i] and free_objects[j]:
            free_detections[i] = free_objects[j] = False
            actual, predicted = ground_truth.category[used[j]], detections.category[rows[i]]
            matrix[label_of.get(actual, last - 1), label_of.get(predicted, last - 1)] += 1
    for i in np.flatnonzero(free_detections):
        matrix[last, label_of.get(detections.category[rows[i]], last - 1)] += 1
    for j in np.flatnonzero(free_objects):
        matrix[label_of.get(ground_truth.category[used[j]], last - 1), last] += 1
    return names, matrix


def _shown_categories(ground_truth: GroundTruth, predicted: np.ndarray, actual: np.ndarray) -> dict[int, int]:
    """Row of each category that the matrix shows: those with the most objects and detections."""
    counts = np.bincount(np.concatenate([predicted, actual]), minlength=ground_truth.num_categories)
    order = [int(k) for k in np.argsort(-counts, kind="stable")[:LISTED] if counts[k]]
    return {k: n for n, k in enumerate(order)}
