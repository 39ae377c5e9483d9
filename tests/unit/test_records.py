"""Records and coordinate tokens: reading states the expected space, and invalid records are named."""

import msgspec
import pytest
from dataset_cases import make_record

from coordexp.evaluation.detections import read_predictions
from coordexp.records import COORD_BINS, Phrase, coord_bin, coord_token, coord_tokens, read_records, record_problems
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl


def test_tokens_and_bins_are_inverse():
    tokens = coord_tokens()
    assert len(tokens) == COORD_BINS and tokens[42] == coord_token(42) == "<|coord_42|>"
    assert [coord_bin(token) for token in tokens] == list(range(COORD_BINS))


@pytest.mark.parametrize("k", [-1, COORD_BINS])
def test_there_is_no_token_outside_the_bins(k):
    with pytest.raises(ValueError, match=r"0\.\.999"):
        coord_token(k)


@pytest.mark.parametrize("text", ["<|coord_*|>", "<|coord_1000|>", "<|coord_01|>", "42", "<|coord_1|> "])
def test_other_text_is_not_a_coordinate_token(text):
    with pytest.raises(ValueError, match="coordinate token"):
        coord_bin(text)


def test_a_reader_refuses_another_space(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [make_record(1)])
    (record,) = read_records(tmp_path / "a.jsonl", "pixel")
    assert record == make_record(1) and record_problems(record) == []
    words = r"a\.jsonl:1: coord_space: expected 'token', found 'pixel'\n  -> .*never converted implicitly"
    with pytest.raises(DataError, match=words):
        list(read_records(tmp_path / "a.jsonl", "token"))


def test_an_invalid_record_is_named_with_its_line(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [make_record(1), make_record(2, boxes=[(0.1, 0.2, 0.1, 0.6)])])
    with pytest.raises(DataError, match=r"a\.jsonl:2: objects\[0\]\.bbox_2d: expected x1 < x2"):
        list(read_records(tmp_path / "a.jsonl", "pixel"))
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"b\.jsonl:1: not a record"):
        list(read_records(tmp_path / "b.jsonl", "pixel"))


@pytest.mark.parametrize(
    "line", [b'{"images": ["\xff.jpg"]}', b'{"\xc3(": 1}', b"[" * 100_000], ids=["value", "key", "deep"]
)
@pytest.mark.parametrize(
    "read", [lambda path: read_records(path, "pixel"), read_predictions], ids=["records", "predictions"]
)
def test_lines_that_are_not_utf8_or_too_deep_are_named(line, read, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: not a (record|prediction)"):
        list(read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("phrase", "problem"),
    [
        (Phrase("the cat", [0]), None),
        (Phrase("a dog", []), None),
        (Phrase(" ", [0]), ("phrases[0].text", "empty text")),
        (Phrase("the <|im_end|>", [0]), ("phrases[0].text", "special token")),
        (Phrase("the cat", [1]), ("phrases[0].objects", "indices of the 1 objects, found 1")),
        (Phrase("the cat", [0, 0]), ("phrases[0].objects", "different indices")),
    ],
)
def test_phrases_name_objects_of_the_record(phrase, problem):
    found = record_problems(msgspec.structs.replace(make_record(1), phrases=[phrase]))
    assert [field for field, _ in found] == ([] if problem is None else [problem[0]])
    assert problem is None or problem[1] in found[0][1]
