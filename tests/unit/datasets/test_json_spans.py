"""Byte spans of JSON elements: equal to what a JSON parser finds, whatever the elements hold."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.datasets import json_spans as scan
from coordexp.datasets.json_spans import element_spans, find_elements, read_spans
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text('ab"\\[]{}_yY,: \n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\]}', max_size=4), inner, max_size=3),
    max_leaves=8,
)


elements = st.lists(st.dictionaries(st.text('ab"\\', max_size=4), values, max_size=4), max_size=5)


@given(elements, elements, values, st.sampled_from([None, 1]), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_spans_are_those_of_the_elements(tmp_path_factory, first, second, other, indent, chunk):
    path = tmp_path_factory.mktemp("scan") / "file.json"
    path.write_text(json.dumps({"info": other, "images": first, "more": [other], "annotations": second}, indent=indent))
    usual, tuning.JSON_READ_BYTES = tuning.JSON_READ_BYTES, chunk
    try:
        spans = element_spans(path, ("images", "annotations"))
    finally:
        tuning.JSON_READ_BYTES = usual
    data = path.read_bytes()
    for name, expected in (("images", first), ("annotations", second)):
        assert [json.loads(data[a:b]) for a, b in spans[name].tolist()] == expected


@pytest.mark.parametrize("text", ["", "[1, 2]", "GIF89a"])
def test_a_file_that_is_something_else_is_an_error(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match="not an annotation file"):
        element_spans(tmp_path / "other.json", ("images",))


def test_spans_are_read_in_the_order_given(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(200)))
    import numpy as np

    spans = np.array([[150, 160], [0, 5], [3, 9], [190, 200]])
    fd = os.open(path, os.O_RDONLY)
    for gap in (0, 1000):
        assert read_spans(fd, spans, gap) == [bytes(range(a, b)) for a, b in spans.tolist()]
    os.close(fd)


def emptied(value, limit, depth=0):
    """A copy in which every list and map of an element that is written in more than `limit` bytes is empty."""
    if depth == 1 and len(json.dumps(value)) - 1 > limit and isinstance(value, dict | list):
        return type(value)()
    inner = value.items() if isinstance(value, dict) and depth == 0 else ()
    return {k: emptied(v, limit, depth + 1) for k, v in inner} if depth == 0 else value


@given(elements, st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_bulk_is_the_content_of_long_lists_and_maps(tmp_path_factory, found, limit, chunk):
    path = tmp_path_factory.mktemp("scan") / "file.json"
    path.write_text(json.dumps({"images": [], "annotations": found}))
    usual = scan.BULK, tuning.JSON_READ_BYTES
    scan.BULK, tuning.JSON_READ_BYTES = limit, chunk
    try:
        annotations = find_elements(path, ("annotations",))["annotations"]
    finally:
        scan.BULK, tuning.JSON_READ_BYTES = usual
    data = bytearray(path.read_bytes())
    for a, b in annotations.bulk.tolist():
        data[a:b] = b" " * (b - a)
    assert [json.loads(data[a:b]) for a, b in annotations.spans.tolist()] == [emptied(e, limit) for e in found]


@pytest.mark.parametrize("text", ['{"images": [{"id": 1', '{"images": [{"id": "1}]}'])
def test_a_truncated_file_is_an_error(tmp_path, text):
    (tmp_path / "cut.json").write_text(text)
    with pytest.raises(DataError, match=r"cut.json.*ends before its last bracket"):
        element_spans(tmp_path / "cut.json", ("images",))
