"""JSON lists are read element by element, with line numbers; what is no complete list is an error."""

import json

import pytest

from coordexp.datasets.formats.json_array import json_array
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError

VALUES = [{"a": 'x,"]}{[\\', "b": [1, [2, {}]]}, "text, with [brackets", 3, None, {"ü": "\n\u20ac"}, [], "\\"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("end", ["", "\r\n \t\n"])
def test_elements_are_found_however_the_file_is_read(size, indent, end, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "JSON_READ_BYTES", size)
    text = json.dumps(VALUES, indent=indent, ensure_ascii=False) + end
    (tmp_path / "a.json").write_text(text)
    found = list(json_array(tmp_path / "a.json"))
    assert [json.loads(element) for _, element in found] == VALUES
    lines = text.splitlines()
    assert all(element.decode().splitlines()[0] in lines[number - 1] for number, element in found)


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf \n[\n1]")
    assert list(json_array(tmp_path / "a.json")) == [(3, b"1")]


BAD = {
    "empty": "not a JSON list",
    '{"a": 1}': "not a JSON list",
    "[1, 2": "truncated",
    '[1, "2]': "truncated",
    "[1] 2": "text after the list",
    "[1]]": "text after the list",
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_other_files_are_errors(text, size, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "JSON_READ_BYTES", size)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=BAD[text]):
        list(json_array(tmp_path / "a.json"))


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b"")
    with pytest.raises(DataError, match="the list is not closed"):
        list(json_array(tmp_path / "a.json"))


@pytest.mark.parametrize("text", ["[1,,2]", "[1,]", "[,1]"])
def test_a_missing_element_is_not_skipped_silently(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert b"" in [element for _, element in json_array(tmp_path / "a.json")]
