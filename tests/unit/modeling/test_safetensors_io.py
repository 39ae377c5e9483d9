"""Malformed safetensors headers and indexes of shards are errors that name the file and the tensor."""

import json
import os

import pytest

from coordexp.modeling.safetensors_io import INDEX_NAME, link_or_copy, open_checkpoint, read_header
from coordexp.runtime.errors import ModelError

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(file, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def tensor(**changes):
    return {"a": GOOD["a"] | changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (tensor(data_offsets=[-8, 0]), "a: damaged safetensors header"),
        (tensor(data_offsets=[8, 0]), "a: invalid tensor entry"),
        (tensor(data_offsets=[0, 4]), "a: invalid tensor entry"),
        (tensor(data_offsets=[4, 12]), "a: the data of a tensor overlaps that of another one, or leaves a gap"),
        (tensor(data_offsets=[0]), "a: damaged"),
        (tensor(data_offsets=[0, 1e400]), "is not JSON"),
        (tensor(shape=[True, 2]), "a: damaged"),
        (tensor(shape=["2"]), "a: damaged"),
        (tensor(shape=[2**64, 2**64]), "a: (damaged|invalid)"),
        (tensor(dtype=[]), "a: damaged"),
        (tensor(dtype="F4"), "a: unsupported dtype"),
        (GOOD | {"b": GOOD["a"]}, "overlaps"),
        (GOOD | {"__metadata__": {"format": 1}}, "__metadata__: damaged"),
        (GOOD | {"b": None}, "b: damaged"),
        ([], "expected an object, found list"),
        (b'{"a": {}, "a": {}}', "repeated key 'a'"),
        (b'{"\\ud800": {}}', "surrogates not allowed"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "damaged safetensors header"),
        (b"\xff" * 10, "damaged safetensors header"),
    ],
    ids=str,
)
def test_a_malformed_header_is_an_error(tmp_path, header, message):
    file = write(tmp_path / "model.safetensors", header)
    with pytest.raises(ModelError, match=message) as error:
        read_header(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_an_impossible_header_length_is_an_error(tmp_path, length):
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_header(write(tmp_path / "model.safetensors", GOOD, length=length))


def test_files_that_are_not_regular_are_errors(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    os.mkfifo(tmp_path / "b.safetensors")
    for name in "ab":
        with pytest.raises(ModelError, match="not a regular file"):
            read_header(tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match="weight file is missing"):
        read_header(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "expected an object"),
        ({}, "weight_map: damaged"),
        ({"weight_map": []}, "weight_map: damaged"),
        ({"weight_map": {}}, "weight_map: damaged"),
        ({"weight_map": {"a": "x.safetensors"}, "metadata": [1]}, "damaged"),
        ({"weight_map": {"a": None}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": ["x.safetensors"]}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": "../x.safetensors"}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": ".."}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": "x.bin"}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": "é" * 125 + ".safetensors"}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": "x\0.safetensors"}}, "a: a shard must be in the folder"),
        ({"weight_map": {"a": "missing.safetensors"}}, "weight file is missing"),
        ({"weight_map": {"b": "x.safetensors"}}, "b: x.safetensors does not contain a tensor"),
        ({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}, "a: two shards contain the same tensor"),
    ],
    ids=str,
)
def test_a_malformed_index_is_an_error(tmp_path, index, message):
    write(tmp_path / "x.safetensors", GOOD)
    both = GOOD | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
    write(tmp_path / "y.safetensors", both, b"\0" * 16)
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path)


def test_a_folder_with_a_single_file_and_an_index_is_an_error_because_readers_would_choose_differently(tmp_path):
    write(tmp_path / "model.safetensors", GOOD)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    with pytest.raises(ModelError, match="as well as an index"):
        open_checkpoint(tmp_path)


def test_only_weights_are_linked(tmp_path):
    for name, method in (("a.safetensors", "link"), ("a.json", "copy"), ("a.txt", "copy"), ("a.jinja", "copy")):
        (tmp_path / name).write_text("x")
        assert link_or_copy(tmp_path / name, tmp_path / f"new_{name}") == method
        assert ((tmp_path / name).stat().st_nlink == 2) is (method == "link")
