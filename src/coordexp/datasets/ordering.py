"""Orders of objects: sorted by position, also within each category, or random with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from coordexp.records import Object

ObjectOrder = Literal["sorted", "random"]
AnswerOrder = Literal["sorted", "left_to_right", "by_category", "random"]


def reading_order(norm_boxes: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Indices [N] that sort boxes [N, 4] (x1, y1, x2, y2 in [0, 1]) by y1, x1, y2, x2.

    The sort is stable. With `groups` [N] (integers), boxes are sorted by group first.
    """
    boxes = np.asarray(norm_boxes, dtype=np.float64).reshape(-1, 4)
    keys = [boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1]]
    return np.lexsort(keys if groups is None else [*keys, groups])


def answer_order(objects: Sequence[Object], order: AnswerOrder) -> list[Object]:
    """The objects sorted by position; with `by_category`, those with the smallest category id first."""
    if order == "left_to_right":
        boxes = np.array([obj.norm_box for obj in objects]).reshape(-1, 4)
        return [objects[i] for i in reading_order(boxes[:, [1, 0, 3, 2]]).tolist()]
    groups = np.array([obj.category_id for obj in objects]) if order == "by_category" else None
    return [objects[i] for i in reading_order(np.array([obj.norm_box for obj in objects]), groups).tolist()]


def random_order(count: int, seed: int, image_id: int | str) -> np.ndarray:
    """A permutation [count] that depends only on the seed and the image."""
    return np.random.default_rng(stable_hash(seed, image_id)).permutation(count)


def stable_hash(seed: int, image_id: int | str) -> int:
    """64 bits of the SHA-256 of seed and image id: the same in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}\0{type(image_id).__name__}\0{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
