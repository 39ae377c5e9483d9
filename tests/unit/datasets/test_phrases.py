"""Phrases in conversion: from annotation ids to the indices of a record's objects; what is left out is counted."""

import pytest
from dataset_cases import annotation_entry, convert_to, image_entry, pixel_records, write_dataset

from coordexp.datasets.phrases import OBJECT_MISSING
from coordexp.datasets.tokenize import tokenize
from coordexp.datasets.validate import validate
from coordexp.records import Phrase, read_records
from coordexp.runtime.errors import DataError

UPPER, LOWER, EMPTY = 21, 22, 23


def dataset(folder, *phrases):
    """An image whose annotations are listed from bottom to top, one of them without area; and one without phrases."""
    boxes = {LOWER: [10, 80, 40, 30], UPPER: [10, 10, 40, 30], EMPTY: [10, 50, 0, 20]}
    annotations = [annotation_entry(i, 1, box) for i, box in boxes.items()]
    listed = [{"text": text, "annotation_ids": ids} for text, ids in phrases]
    return write_dataset(folder, [image_entry(1, phrases=listed), image_entry(2)], annotations, format="coco")


def test_phrases_name_objects_by_their_index_in_the_record(tmp_path):
    manifest = dataset(tmp_path, ("below", [LOWER]), ("both", [LOWER, UPPER]), ("a boat", []))
    stats = convert_to(manifest, tmp_path / "out", 48)
    first, second = pixel_records(tmp_path / "out")
    assert first.phrases == [Phrase("below", [1]), Phrase("both", [0, 1]), Phrase("a boat", [])]
    assert first.objects[0].norm[1] < first.objects[1].norm[1] and second.phrases == []
    assert stats["phrases"] == {"listed": 3, "written": 3, "without_objects": 1, "dropped": {}}
    assert validate(tmp_path / "out/train.jsonl") == []
    tokenize(tmp_path / "out/train.jsonl", tmp_path / "out/train.coord.jsonl")
    assert [r.phrases for r in read_records(tmp_path / "out/train.coord.jsonl", "token")] == [first.phrases, []]


def test_random_order_of_objects_moves_the_indices_with_them(tmp_path):
    manifest = dataset(tmp_path, ("below", [LOWER]))
    seen = set()
    for seed in range(8):
        convert_to(manifest, tmp_path / f"{seed}", 48, ordering="random", seed=seed)
        record = pixel_records(tmp_path / f"{seed}")[0]
        (index,) = record.phrases[0].objects
        assert record.objects[index].norm[1] > 0.5
        seen.add(index)
    assert seen == {0, 1}


def test_a_phrase_whose_object_is_left_out_is_left_out_and_counted(tmp_path, capsys):
    stats = convert_to(dataset(tmp_path, ("below", [LOWER]), ("all", [UPPER, EMPTY])), tmp_path / "out", 48)
    assert pixel_records(tmp_path / "out")[0].phrases == [Phrase("below", [1])]
    assert stats["phrases"]["dropped"] == {OBJECT_MISSING: 1}
    assert f"{OBJECT_MISSING} (1 phrases)" in capsys.readouterr().err


def test_an_invalid_phrase_is_an_error_or_a_counted_skip(tmp_path):
    manifest = dataset(tmp_path, ("a <|coord_1|>", [LOWER]), ("below", [LOWER]))
    with pytest.raises(DataError, match="invalid phrase"):
        convert_to(manifest, tmp_path / "out", 48)
    stats = convert_to(manifest, tmp_path / "out", 48, on_bad="skip")
    assert stats["phrases"]["dropped"] == {"invalid phrase": 1}


def test_records_without_phrases_are_written_as_before(tmp_path):
    convert_to(write_dataset(tmp_path), tmp_path / "out", 48)
    assert "phrases" not in (tmp_path / "out/train.jsonl").read_text()
