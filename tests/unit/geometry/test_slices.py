"""Slices cover the image, overlap as stated, and are listed once."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.geometry.slices import Slice, SliceOptions, slices_of

SIZE = (640, 480)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    side=st.integers(1, 400),
    overlap=st.floats(0, 0.9),
)
def test_slices_of_a_grid_or_a_size_cover_the_image_and_stay_inside(size, grid, side, overlap):
    for options in (SliceOptions(grids=(grid,), overlap=overlap), SliceOptions(sizes=(side,), overlap=overlap)):
        covered = np.zeros(size[::-1], bool)
        slices = slices_of(size, size[0], options)
        for left, top, width, height in slices:
            assert left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]
            covered[top : top + height, left : left + width] = True
        assert covered.all()
        assert len({(s.width, s.height) for s in slices}) == 1


def test_a_grid_has_the_stated_columns_rows_and_overlap():
    slices = slices_of(SIZE, 640, SliceOptions(grids=((3, 2),), overlap=0.5))
    assert slices == [Slice(x, y, 320, 320) for y in (0, 160) for x in (0, 160, 320)]
    assert slices_of(SIZE, 640, SliceOptions(grids=((2, 1),), overlap=0.0)) == [(0, 0, 320, 480), (320, 0, 320, 480)]


@settings(deadline=None, max_examples=60)
@given(side=st.integers(20, 600), overlap=st.floats(0, 0.9), data=st.data())
def test_an_object_that_fits_into_the_overlap_is_inside_a_slice(side, overlap, data):
    slices = slices_of(SIZE, 640, SliceOptions(sizes=(side,), overlap=overlap))
    extent = max(int(side * overlap), 1)
    x, y = data.draw(st.integers(0, 640 - extent)), data.draw(st.integers(0, max(480 - extent, 0)))
    bottom = min(y + extent, 480)
    assert any(
        s.left <= x and s.top <= y and s.left + s.width >= x + extent and s.top + s.height >= bottom for s in slices
    )


def test_sizes_are_pixels_of_the_source_image():
    halved = slices_of((320, 240), 640, SliceOptions(sizes=(200,), overlap=0.0))
    assert {(s.width, s.height) for s in halved} == {(100, 100)} and len(halved) == 4 * 3


def test_the_whole_image_is_added_once():
    options = SliceOptions(grids=((1, 1), (2, 1)), sizes=(5000,), whole_image=True)
    slices = slices_of(SIZE, 640, options)
    assert len(slices) == 3 and slices[0] == (0, 0, 640, 480)
    assert slices_of(SIZE, 640, SliceOptions(grids=((2, 1),), whole_image=True))[-1] == (0, 0, 640, 480)


def test_a_category_may_have_grids_of_its_own():
    options = SliceOptions(grids=((3, 2),), sizes=(100,), whole_image=True, category_grids={"big": ((1, 1),)})
    assert slices_of(SIZE, 640, options, "big") == [(0, 0, 640, 480)]
    assert slices_of(SIZE, 640, options, "other") == slices_of(SIZE, 640, options)
    with pytest.raises(msgspec.ValidationError, match=r"category_grids\.big: expected at least one grid"):
        msgspec.convert({"grids": [[2, 2]], "category_grids": {"big": []}}, SliceOptions)


def test_options_without_slices_are_refused():
    with pytest.raises(msgspec.ValidationError, match="grids, sizes: expected at least one"):
        msgspec.convert({"overlap": 0.3}, SliceOptions)
