"""Mutated annotation files: a short run, and 2,000 files with `make soak`."""

import pytest
from annotation_fuzz import fuzz


@pytest.mark.parametrize(
    ("first", "count"), [(0, 100), pytest.param(1000, 2000, marks=pytest.mark.soak)], ids=["short", "soak"]
)
def test_mutated_annotation_files_are_refused_or_accounted_for(tmp_path, first, count):
    outcomes = fuzz(tmp_path, first, count)
    print(f"{count} mutated annotation files: {outcomes}")
    assert min(outcomes.values()) > count / 10
