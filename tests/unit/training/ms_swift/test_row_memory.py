"""The index of the rows and the order of the batches: ms-swift's results with a few bytes per row."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

ROWS = 200_000


def test_the_row_index_takes_8_bytes_per_row_and_its_chunks_do_not_matter():
    from coordexp.training.ms_swift.dataset import ROWS_PER_CHUNK, TRAIN, RowIndex

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    rows = RowIndex.of(TRAIN, ROWS)
    same = rows.add_column("dataset", [TRAIN] * ROWS)  # as ms-swift calls it
    peak = tracemalloc.get_traced_memory()[1] - 8 * ROWS  # of which the list of the argument is a part
    tracemalloc.stop()
    assert len(rows) == ROWS and same is rows
    for index in (0, ROWS_PER_CHUNK - 1, ROWS_PER_CHUNK, ROWS - 1):
        assert rows[index] == {"index": index, "split": TRAIN, "count": ROWS}
    constants = ROWS_PER_CHUNK * (len(TRAIN) + 4 + 8)
    assert peak + pa.total_allocated_bytes() - before < 8 * ROWS + 1.5 * constants
    assert RowIndex.of(TRAIN, 3)[:] == {"index": [0, 1, 2], "split": [TRAIN] * 3, "count": [3] * 3}


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (3, 1)])
def test_the_batches_are_those_of_ms_swift(monkeypatch, drop_last, world_size, rank):
    from swift.dataloader import BatchSamplerShard

    from coordexp.training.ms_swift.dataloader import ShuffledBatches

    for name, value in (("world_size", world_size), ("rank", rank)):
        monkeypatch.setattr(BatchSamplerShard, name, property(lambda _, value=value: value))
    ours, theirs = (kind(25_003, 16, True, drop_last, 17) for kind in (ShuffledBatches, BatchSamplerShard))
    for epoch in (0, 2):
        ours.set_epoch(epoch), theirs.set_epoch(epoch)
        assert list(ours) == list(theirs) and len(list(ours)) == len(ours)


def test_batches_take_a_few_bytes_per_row():
    from coordexp.training.ms_swift.dataloader import INDICES_PER_READ, ShuffledBatches

    tracemalloc.start()  # counts Python's objects; the order itself is a tensor of 4 bytes per row
    seen = np.zeros(ROWS, bool)
    for batch in ShuffledBatches(ROWS, 16, True, False, 17):
        seen[batch] = True
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen.all() and peak < ROWS + 60 * INDICES_PER_READ


def test_ms_swift_uses_both():
    from swift.pipelines.train import sft
    from swift.trainers import mixin

    from coordexp.training.ms_swift import dataset, plugin
    from coordexp.training.ms_swift.dataloader import ShuffledBatches

    plugin.register()
    assert sft.LazyLLMDataset is dataset.EncodedRows and mixin.BatchSamplerShard is ShuffledBatches
