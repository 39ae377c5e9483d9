"""The grid: golden sizes, Qwen's own rule, and what holds for every image."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from coordexp.geometry.resize import MAX_ASPECT, grid_size

sides = st.integers(1, 5000)
budgets = st.integers(4, 1100)


smart_resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize


def shrink(width, height, max_blocks=768, factor=32, min_blocks=4):
    return grid_size(width, height, "shrink", factor=factor, max_blocks=max_blocks, min_blocks=min_blocks)


def fill(width, height, max_blocks=768, factor=32, min_blocks=4):
    return grid_size(width, height, "fill", factor=factor, max_blocks=max_blocks, min_blocks=min_blocks)


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        ((640, 480), 768, (640, 480)),
        ((640, 427), 768, (640, 416)),
        ((500, 375), 768, (512, 384)),
        ((2000, 1500), 768, (1024, 768)),
        ((2000, 1500), 1024, (1152, 864)),
        ((33, 20), 768, (96, 64)),
    ],
)
def test_golden_sizes_of_shrink(size, budget, expected):
    assert shrink(*size, budget) == expected


@pytest.mark.parametrize(("budget", "expected"), [(768, (1024, 768)), (1024, (1152, 864))])
def test_golden_sizes_of_fill(budget, expected):
    assert fill(640, 480, budget) == expected


@given(sides, sides, budgets, st.sampled_from([28, 32]))
@example(2000, 1500, 768, 32)
@settings(max_examples=500)
def test_shrink_is_the_rule_that_transformers_ships(width, height, budget, factor):
    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    pixels = {"min_pixels": 4 * factor**2, "max_pixels": budget * factor**2}
    rows, columns = smart_resize(height, width, factor=factor, **pixels)
    found = shrink(width, height, budget, factor)
    if columns * rows <= budget * factor**2:
        assert found == (columns, rows)
    else:  # theirs is over its own limit, for images a few pixels thin
        assert found[0] * found[1] <= budget * factor**2


@given(sides, sides, budgets, st.sampled_from(["fill", "shrink"]))
@settings(max_examples=500)
def test_every_size_is_on_the_grid(width, height, budget, rule):
    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    w, h = grid_size(width, height, rule, factor=32, max_blocks=budget, min_blocks=4)
    assert w > 0
    assert h > 0
    assert w % 32 == h % 32 == 0
    assert w * h // 32**2 <= budget


@given(sides, sides, budgets)
@example(7, 1, 4)
@example(1, 7, 4)
@settings(max_examples=300)
def test_fill_leaves_no_room_for_the_same_shape_one_step_larger(width, height, budget):
    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    w, h = fill(width, height, budget)
    columns, rows = w // 32, h // 32
    assert (columns + 1) * (rows + 1) > budget


@given(sides, sides, budgets, st.sampled_from(["fill", "shrink"]))
def test_turning_the_image_turns_the_size(width, height, budget, rule):
    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    options = {"factor": 32, "max_blocks": budget, "min_blocks": 4}
    assert grid_size(width, height, rule, **options) == grid_size(height, width, rule, **options)[::-1]


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (201, 1), (1, 201)])
def test_an_impossible_image_is_an_error(size):
    with pytest.raises(ValueError, match="aspect ratio of at most 200"):
        shrink(*size)


def test_an_impossible_budget_is_an_error():
    with pytest.raises(ValueError, match="min_blocks <= max_blocks"):
        shrink(100, 100, max_blocks=3)
