"""Orders of the objects in an answer."""

from __future__ import annotations

from coordexp.datasets.ordering import answer_order
from coordexp.records import Object


def box(category: int, x1: float, y1: float) -> Object:
    return Object(f"{x1} {y1}", category, [x1, y1, x1 + 0.1, y1 + 0.1], bbox_2d=[0, 0, 1, 1])


def test_objects_are_sorted_by_rows_by_columns_or_by_category():
    objects = [box(1, 0.5, 0.2), box(2, 0.1, 0.6), box(1, 0.3, 0.6), box(2, 0.5, 0.1)]
    order = {
        name: [obj.desc for obj in answer_order(objects, name)] for name in ("sorted", "left_to_right", "by_category")
    }
    assert order["sorted"] == ["0.5 0.1", "0.5 0.2", "0.1 0.6", "0.3 0.6"]
    assert order["left_to_right"] == ["0.1 0.6", "0.3 0.6", "0.5 0.1", "0.5 0.2"]
    assert order["by_category"] == ["0.5 0.2", "0.3 0.6", "0.5 0.1", "0.1 0.6"]
    assert answer_order([], "left_to_right") == []
