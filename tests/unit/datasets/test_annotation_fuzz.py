"""A short run of the fuzz of annotation files; tests/soak/fuzz_annotations.py has the long one."""

from annotation_fuzz import fuzz


def test_mutated_annotation_files_are_refused_or_accounted_for(tmp_path):
    outcomes = fuzz(tmp_path, first=0, count=100)
    assert min(outcomes.values()) > 10
