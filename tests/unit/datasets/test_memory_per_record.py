"""Memory of the stages between conversion and training grows by a few bytes per record, whatever its size."""

import tracemalloc

import pytest
from dataset_cases import make_record

from coordexp.datasets.mixture import Mixture, single_file_mixture
from coordexp.datasets.splits import calibration_split, tiny_split
from coordexp.datasets.tokenize import tokenize
from coordexp.runtime.io import write_jsonl

SMALL, LARGE = 1000, 6000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """For each of the two sizes, a folder with the records in pixel and in token space."""
    root = tmp_path_factory.mktemp("records")
    for count in (SMALL, LARGE):
        write_jsonl(root / f"{count}/a.jsonl", (make_record(i) for i in range(count)))
        tokenize(root / f"{count}/a.jsonl", root / f"{count}/a.coord.jsonl")
    return {count: root / str(count) for count in (SMALL, LARGE)}


def bytes_per_record(call, folders):
    """Growth of the peak memory of `call(folder)` per record."""
    peaks = {}
    for count, folder in folders.items():
        tracemalloc.start()
        call(folder)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return (peaks[LARGE] - peaks[SMALL]) / (LARGE - SMALL)


def split_off(folder):
    names = ("a.jsonl", "a.coord.jsonl", "calibration.jsonl", "rest.jsonl", "rest.coord.jsonl")
    calibration_split(*(folder / name for name in names), int(folder.name) // 4, 17)


def opened(folder):
    return Mixture(single_file_mixture(folder / "a.coord.jsonl"), "token")


@pytest.mark.parametrize(
    ("call", "limit"),
    [
        (lambda folder: tokenize(folder / "a.jsonl", folder / "b.jsonl"), 1),
        (lambda folder: tiny_split(folder / "a.jsonl", folder / "t.jsonl", 10**9, 17), 40),
        (split_off, 40),
        (opened, 20),
        (lambda folder: opened(folder).epoch(3), 24),
    ],
    ids=["tokenize", "tiny_split", "calibration_split", "mixture", "epoch"],
)
def test_memory_per_record(folders, call, limit):
    assert bytes_per_record(call, folders) < limit
