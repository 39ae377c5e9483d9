"""Merging of several answers to one prompt: each answer votes for the boxes that it contains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from coordexp.geometry.boxes import iou
from coordexp.records import Detection


def merge_answers(
    answers: Sequence[Sequence[Detection]], threshold: float, vote_weight: float = 0.5
) -> list[Detection]:
    """One ranked list from the detections of K answers to the same prompt, highest score first.

    Detections with the same description are grouped greedily by falling score: a detection joins the group whose best
    member it overlaps most, if their IoU is at least `threshold` and no member of the group is from the same answer.
    The result is the best member, with `votes`, the number of members divided by K, in its `score_parts`. Its score is
    (1 - w) s + w m / K with the best member's score s, the sum m of all scores, and `vote_weight` w in [0, 1].
    """
    by_desc: dict[str, list[tuple[int, int, Detection]]] = defaultdict(list)
    for number, answer in enumerate(answers):
        for position, detection in enumerate(answer):
            by_desc[detection.desc].append((number, position, detection))
    merged = [
        _merged(group, len(answers), vote_weight)
        for members in by_desc.values()
        for group in _groups(members, threshold)
    ]
    return sorted(merged, key=lambda detection: (-detection.score, detection.desc, detection.norm))


def _groups(members: list[tuple[int, int, Detection]], threshold: float) -> list[list[Detection]]:
    """Groups of detections with one description, each with its best member first."""
    ranked = sorted(members, key=lambda member: (-member[2].score, *member[:2]))
    boxes = np.array([detection.norm for *_, detection in ranked])
    overlap = iou(boxes, boxes)
    groups: list[list[int]] = []
    for i, (number, *_) in enumerate(ranked):
        others = (g for g in groups if all(ranked[j][0] != number for j in g))
        near = max(others, key=lambda g: overlap[i, g[0]], default=None)
        if near is not None and overlap[i, near[0]] >= threshold:
            near.append(i)
        else:
            groups.append([i])
    return [[ranked[i][2] for i in group] for group in groups]


def _merged(group: list[Detection], answers: int, vote_weight: float) -> Detection:
    best, mean = group[0], sum(detection.score for detection in group) / answers
    score = (1 - vote_weight) * best.score + vote_weight * mean
    return msgspec.structs.replace(best, score=score, score_parts=best.score_parts | {"votes": len(group) / answers})
