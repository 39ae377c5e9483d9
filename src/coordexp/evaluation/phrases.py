"""Scores answers to phrases: accuracy for one target, precision and recall for several, rejections for none.

An answer consists of the detections of an image whose description is the phrase. Two annotated phrases with the same
text in one image are scored separately, against the same answer, as in the tables of RefCOCO. There is no score
threshold; scores only decide which box of an answer is its best one. A truncated answer without a box does not reject
its phrase: the answer is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordexp.evaluation.bootstrap import INTERVALS, interval, replicates
from coordexp.evaluation.box_pairs import box_iou
from coordexp.evaluation.breakdowns import none_if_nan
from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.greedy_matching import Targets, greedy, rank_in_group
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.metrics import PHRASE_METRICS
from coordexp.evaluation.phrase_results import NumberOfTargets, PhraseExample, PhraseResult, PhraseRow
from coordexp.evaluation.result_types import ConfidenceIntervals
from coordexp.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

IOU = 0.5
DESCRIPTION = "each phrase is asked separately; boxes match targets at IoU >= 0.5, without a score threshold"


@dataclass(frozen=True)
class ScoredPhrases:
    """P phrases with their answers.

    best_iou: IoU of the highest-scoring box with the only target; 0 without a box, nan without exactly one target.
    """

    texts: Sequence[str]
    image: np.ndarray  # int64 [P], index of the image
    targets: np.ndarray  # int64 [P], number of objects that the phrase describes
    boxes: np.ndarray  # int64 [P], number of boxes in the answer
    true_positives: np.ndarray  # int64 [P], boxes that match a target
    best_iou: np.ndarray  # float64 [P]
    truncated: np.ndarray  # bool [P], whether the answer was truncated

    @property
    def rejected(self) -> np.ndarray:
        """Whether the answer says that the phrase has no target; bool [P]."""
        return (self.boxes == 0) & ~self.truncated

    @property
    def exact(self) -> np.ndarray:
        """Whether all targets of a phrase are matched and all boxes are true positives; bool [P]."""
        matched = (self.true_positives == self.targets) & (self.true_positives == self.boxes)
        return matched & (self.rejected | (self.boxes > 0))

    def statistic(self, weights: np.ndarray) -> dict[str, float]:
        """All metrics under image weights (int64 [I]); nan where undefined."""
        weight = weights[self.image].astype(np.float64)
        one, several, none = self.targets == 1, self.targets > 1, self.targets == 0

        def mean(values: np.ndarray, rows: np.ndarray) -> float:
            return _ratio((weight * values)[rows].sum(), weight[rows].sum())

        found = (weight * self.true_positives)[several].sum()
        boxes, targets = (weight * self.boxes)[several].sum(), (weight * self.targets)[several].sum()
        return {
            "accuracy_50": mean(self.best_iou >= IOU, one),
            "accuracy_75": mean(self.best_iou >= 0.75, one),
            "mean_iou": mean(self.best_iou, one),
            "precision_50": _ratio(found, boxes),
            "recall_50": _ratio(found, targets),
            "F1_50": _ratio(2 * found, boxes + targets),
            "no_target_accuracy": mean(self.rejected, none),
            "exact_50": mean(self.exact, np.ones(len(weight), dtype=bool)),
        }


def score_phrases(
    ground_truth: GroundTruth, detections: DetectionTable, truncated: Mapping[int | str, Sequence[str]]
) -> ScoredPhrases:
    """Match the answer to every phrase with its targets, greedily in the order of the scores.

    truncated: phrases with a truncated answer, by image id; an empty list if it is unknown which of the image's.
    """
    phrases, row_of = ground_truth.phrases, _rows_by_id(ground_truth)
    target_rows = [[row_of[str(i)] for i in phrase.annotation_ids] for phrase in phrases]
    image = np.array([phrase.image for phrase in phrases], dtype=np.int64)
    targets = np.array([len(rows) for rows in target_rows], dtype=np.int64)
    text_index = {text: i for i, text in enumerate(detections.descriptions)}
    text = np.array([text_index.get(phrase.text, -1) for phrase in phrases], dtype=np.int64)
    answer = _answer_rows(image, text, detections)
    boxes = np.array([len(rows) for rows in answer], dtype=np.int64)

    code = np.repeat(np.arange(len(phrases)), boxes)
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *answer])
    objects = np.array([row for rows in target_rows for row in rows], dtype=np.int64)
    target_code = np.repeat(np.arange(len(phrases)), targets)
    taken = match_targets(detections.box[rows], code, ground_truth.box[objects], target_code)

    best_iou = np.where(targets == 1, 0.0, np.nan)
    answered = np.flatnonzero((targets == 1) & (boxes > 0))
    first = rows[(np.cumsum(boxes) - boxes)[answered]]
    only = objects[(np.cumsum(targets) - targets)[answered]]
    best_iou[answered] = box_iou(detections.box[first], ground_truth.box[only])
    true_positives = np.bincount(code[taken >= 0], minlength=len(phrases))
    cut = np.array([_is_truncated(ground_truth.image_ids[p.image], p.text, truncated) for p in phrases], dtype=bool)
    return ScoredPhrases([p.text for p in phrases], image, targets, boxes, true_positives, best_iou, cut)


def match_targets(boxes: np.ndarray, code: np.ndarray, targets: np.ndarray, target_code: np.ndarray) -> np.ndarray:
    """The target that each of N boxes matches, int64 [N] or -1; boxes x, y, w, h by falling score within a phrase.

    code, target_code: the phrase that a box answers or a target belongs to, ascending.
    """
    no_crowd = np.zeros(len(targets), dtype=bool)
    to_match = Targets(targets, target_code, no_crowd, no_crowd)
    return greedy(boxes, code, rank_in_group(code), to_match, np.array([IOU]))[0][:, 0]


def phrase_result(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    truncated: Mapping[int | str, Sequence[str]],
    *,
    bootstrap: int,
    seed: int,
    without_record: int,
    examples: int,
) -> PhraseResult:
    """The `phrases` block of eval.json; `bootstrap` replicates for the intervals, over images.

    truncated: as in `score_phrases`.
    """
    scored = score_phrases(ground_truth, detections, truncated)
    count = ground_truth.num_images
    values = scored.statistic(np.ones(count, dtype=np.int64))
    drawn = replicates(scored.statistic, count, bootstrap if len(scored.image) else 0, seed)
    return PhraseResult(
        description=DESCRIPTION,
        phrases=len(scored.image),
        images=len(np.unique(scored.image)),
        without_record=without_record,
        metrics={name: none_if_nan(value) for name, value in values.items()},
        metric_descriptions=dict(PHRASE_METRICS),
        intervals=ConfidenceIntervals(
            description=f"{INTERVALS}, {bootstrap} replicates, seed {seed}",
            replicates=bootstrap,
            values={name: interval(values[name], replicate) for name, replicate in drawn.items()},
        ),
        baselines=_baselines(ground_truth),
        by_targets=_by_targets(scored),
        **_examples(scored, ground_truth, examples),
    )


def _is_truncated(image_id: int | str, text: str, truncated: Mapping[int | str, Sequence[str]]) -> bool:
    phrases = truncated.get(image_id)
    return phrases is not None and (not phrases or text in phrases)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def _rows_by_id(ground_truth: GroundTruth) -> dict[str, int]:
    """Row of each object that phrases refer to, by its annotation id as text."""
    used = {str(i) for phrase in ground_truth.phrases for i in phrase.annotation_ids}
    ids = ground_truth.annotation_id.astype(str).tolist() if used else []
    return {annotation_id: row for row, annotation_id in enumerate(ids) if annotation_id in used}


def _answer_rows(image: np.ndarray, text: np.ndarray, detections: DetectionTable) -> list[np.ndarray]:
    """Rows of `detections` that answer each phrase, best score first."""
    texts = max(len(detections.descriptions), 1)
    code = detections.image * texts + detections.desc
    order = np.argsort(code, kind="stable")  # keeps the order of the scores
    wanted = image * texts + text
    low, high = (np.searchsorted(code[order], wanted, side) for side in ("left", "right"))
    return [order[a:b] if t >= 0 else order[:0] for a, b, t in zip(low, high, text, strict=True)]


def _baselines(ground_truth: GroundTruth) -> dict[str, float | None]:
    """accuracy_50, over phrases with one target, of answers that do not depend on the phrase.

    largest_object: the object of the image with the largest box. random_object: any object of the image, on average.
    same_box: the median target box of this file, in fractions of the image, for every phrase.
    """
    single = [phrase for phrase in ground_truth.phrases if len(phrase.annotation_ids) == 1]
    if not single:
        return dict.fromkeys(("largest_object", "random_object", "same_box"))
    row_of = _rows_by_id(ground_truth)
    rows = np.array([row_of[str(phrase.annotation_ids[0])] for phrase in single])
    target, image = ground_truth.box[rows], ground_truth.image[rows]
    size = np.tile(ground_truth.sizes[image], 2)
    same_box = xyxy_to_xywh(np.median(xywh_to_xyxy(target) / size, axis=0) * size)
    constant = box_iou(same_box, target) >= IOU
    low, high = (np.searchsorted(ground_truth.image, image, side) for side in ("left", "right"))
    largest, random = [], []
    for a, b, box in zip(low, high, target, strict=True):
        objects = ground_truth.box[a:b]
        correct = box_iou(objects, box[None]) >= IOU
        largest.append(correct[np.argmax(objects[:, 2:].prod(axis=1))])
        random.append(correct.mean())
    means = np.mean(largest), np.mean(random), np.mean(constant)
    return dict(zip(("largest_object", "random_object", "same_box"), map(float, means), strict=True))


def _by_targets(scored: ScoredPhrases) -> list[PhraseRow]:
    groups: tuple[tuple[NumberOfTargets, np.ndarray], ...] = (
        ("none", scored.targets == 0),
        ("one", scored.targets == 1),
        ("several", scored.targets > 1),
    )
    return [
        PhraseRow(
            targets=name,
            phrases=int(rows.sum()),
            objects=int(scored.targets[rows].sum()),
            boxes=int(scored.boxes[rows].sum()),
            true_positives=int(scored.true_positives[rows].sum()),
            false_positives=int((scored.boxes - scored.true_positives)[rows].sum()),
            without_boxes=int((scored.boxes[rows] == 0).sum()),
            exact=int(scored.exact[rows].sum()),
            truncated=int(scored.truncated[rows].sum()),
        )
        for name, rows in groups
    ]


def _examples(scored: ScoredPhrases, ground_truth: GroundTruth, count: int) -> dict[str, list[PhraseExample]]:
    errors = scored.boxes + scored.targets - 2 * scored.true_positives
    number = np.arange(len(errors))
    best = np.lexsort((number, -scored.targets))
    worst = np.lexsort((number, -errors))

    def example(p: int) -> PhraseExample:
        return PhraseExample(
            image_id=ground_truth.image_ids[scored.image[p]],
            text=scored.texts[p],
            targets=int(scored.targets[p]),
            boxes=int(scored.boxes[p]),
            true_positives=int(scored.true_positives[p]),
        )

    return {
        "best": [example(p) for p in best[scored.exact[best]][:count]],
        "worst": [example(p) for p in worst[~scored.exact[worst]][:count]],
    }
