"""Arrays on disk, searched in parts: the results are those of searches in memory, whatever the sizes of the parts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.datasets.disk_arrays import (
    TEXT,
    ArrayFile,
    KeyFile,
    find_rows,
    group_rows,
    keys_of,
    repeated_rows,
    same_kind,
    without_rows,
    zeros,
)
from coordexp.runtime import tuning

integers = st.integers(-3, 9) | st.integers(-(2**63), 2**63 - 1)
ids = st.lists(integers, max_size=30) | st.lists(integers | st.text("ab10", max_size=2), max_size=30)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(tuning, "ROWS_PER_BLOCK", 5)
    monkeypatch.setattr(tuning, "KEYS_IN_MEMORY", 4)


def written(values, block=7):
    """The keys of `values`, appended in blocks."""
    file = KeyFile()
    for low in range(0, len(values), block):
        file.append(keys_of(values[low : low + block]))
    return file.finish()


def comparable(values):
    """The values, as text if any is one."""
    return [str(v) for v in values] if any(isinstance(v, str) for v in values) else values


@given(ids)
@settings(deadline=None, max_examples=60)
def test_rows_with_a_repeated_id_are_found(values):
    known = comparable(values)
    assert repeated_rows(written(values)).tolist() == [i for i, v in enumerate(known) if v in known[:i]]


@given(ids, ids)
@settings(deadline=None, max_examples=60)
def test_the_row_of_each_wanted_id_is_found(values, wanted):
    both = comparable([*values, *wanted])
    unique = list(dict.fromkeys(both[: len(values)]))
    expected = [unique.index(v) if v in unique else -1 for v in both[len(values) :]]
    assert find_rows(*same_kind(written(unique), written(wanted))).tolist() == expected


@given(st.lists(st.integers(-1, 6), max_size=40))
@settings(deadline=None, max_examples=60)
def test_rows_are_grouped_in_their_order(groups):
    rows, bounds = group_rows(np.array(groups, np.int64), 7)
    found = [rows[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert found == [[i for i, group in enumerate(groups) if group == k] for k in range(7)]


@pytest.mark.parametrize("removed", [[], [0], [4, 5, 11], list(range(12))])
def test_rows_are_removed(removed):
    array = np.arange(24).reshape(12, 2)
    assert (without_rows(array, np.array(removed, np.int64)) == np.delete(array, removed, axis=0)).all()


def test_integers_before_and_after_a_text_are_compared_as_text():
    keys = written([1, 2, 3, "x", 1, "2", 4], block=2)
    assert keys.dtype == TEXT
    assert repeated_rows(keys).tolist() == [4, 5]


def test_rows_are_stored_in_the_given_folder_without_a_name(tmp_path):
    file = ArrayFile(np.float64, (2,), tmp_path)
    file.append(np.ones((3, 2)))
    assert file.finish().tolist() == [[1, 1]] * 3
    assert zeros(7, np.int64, tmp_path).tolist() == [0] * 7
    assert ArrayFile(np.int64, (2,), tmp_path).finish().shape == (0, 2)
    assert not list(tmp_path.iterdir())
