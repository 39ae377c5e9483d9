"""Checksums of published folders: every changed byte is found by every reader, and named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import modeling_helpers as helpers
import pytest

from coordexp import cli
from coordexp.answers.render import PromptStyle
from coordexp.doctor import examine
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.modeling import base_model, checksums, vocab
from coordexp.modeling.merge import merge
from coordexp.recipe import Custom, load_recipe
from coordexp.runtime.errors import ModelError
from coordexp.runtime.io import sha256_file
from coordexp.training.train import train

RECIPE = Path(__file__).resolve().parents[3] / "config/train/full_tiny.yaml"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """`expanded`, `adapter` and `merged` of a small sharded model."""
    folder = tmp_path_factory.mktemp("published")
    helpers.expanded(folder, tie=True, sharded=True)
    helpers.adapted(folder / "expanded").save_pretrained(folder / "adapter")
    checksums.write_checksums(folder / "adapter")
    merge(folder / "expanded", folder / "adapter", folder / "merged")
    return folder


@pytest.fixture
def copies(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "published"))


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_published_folders_list_all_of_their_files(published):
    for name in ("expanded", "merged"):
        listed = checksums.verify_checksums(published / name)
        assert listed == {
            file.name: sha256_file(file)
            for file in (published / name).iterdir()
            if file.name not in (checksums.FILE_NAME, ".coordexp")
        }
        done = subprocess.run(["sha256sum", "-c", "--quiet", checksums.FILE_NAME], cwd=published / name, check=False)
        assert done.returncode == 0


def test_linked_weights_of_a_full_training_have_their_own_hash(published, tmp_path):
    trained = Path(shutil.copytree(published / "merged", tmp_path / "trained"))
    for name in ("merge_manifest.json", "coord_tokens.json"):
        (trained / name).unlink()
    checksums.write_checksums(trained)
    manifest = merge(published / "expanded", trained, tmp_path / "out")
    assert manifest["trained"]["kind"] == "full" and "link" in manifest["shards"].values()
    assert checksums.verify_checksums(tmp_path / "out")


READERS = {
    "merge": lambda f: merge(f / "expanded", f / "adapter", f / "out"),
    "expand": lambda f: vocab.expand(f / "merged", f / "out"),
    "check": lambda f: vocab.check(f / "merged"),
    "fetch": lambda f: base_model.fetch("mine", {"source": "path", "path": str(f / "merged")}, f / "out"),
    "command": lambda f: cli.main(["detect", str(f / "none.png"), "--model", str(f / "merged")]),
}


@pytest.mark.parametrize(
    ("reader", "damaged"),
    [("merge", "adapter"), ("merge", "expanded"), ("expand", "merged"), ("check", "merged"), ("fetch", "merged")],
)
@pytest.mark.parametrize("position", [200, -1])
def test_a_flipped_byte_of_weights_is_an_error(copies, reader, damaged, position):
    for file in sorted((copies / damaged).glob("*.safetensors"))[-2:]:
        position = len(file.read_bytes()) // 2 if position == 200 else position
        flip(file, position)
        with pytest.raises(ModelError, match=rf"{file.name}: sha256: the file is damaged"):
            READERS[reader](copies)
        flip(file, position)
    assert not (copies / "out").exists()
    READERS[reader](copies)


USERS = {
    "train": lambda data, f: train(
        load_recipe(RECIPE, {"custom": {"train_jsonl": str(data / "train.coord.jsonl")}}), f, f / "out", f / "log.jsonl"
    ),
    "predict": lambda data, f: predict(f, data / "val.jsonl", f / "out.jsonl", PredictOptions(), PromptStyle()),
    "doctor": lambda data, f: examine(data / "train.coord.jsonl", 0, f, Custom()),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", ["expanded", "merged"])
def test_a_model_with_a_flipped_byte_is_not_used(copies, shapes_data, user, name):
    file = max((copies / name).glob("*.safetensors"))
    flip(file, len(file.read_bytes()) // 3)
    with pytest.raises(ModelError, match=rf"{file.name}: sha256: the file is damaged"):
        USERS[user](shapes_data, copies / name)


def test_a_changed_manifest_or_setting_is_an_error(copies, capsys):
    file = copies / "merged" / "merge_manifest.json"
    flip(file, 5)
    assert READERS["command"](copies) != 0
    assert "merge_manifest.json: sha256: the file is damaged" in capsys.readouterr().err


def test_missing_and_added_weights_are_errors(copies):
    shutil.copy(copies / "expanded/config.json", copies / "merged/notes.txt")
    checksums.verify_checksums(copies / "merged")  # the user's own notes
    added = copies / "merged" / "model.safetensors"  # would be loaded instead of the shards
    added.write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.safetensors: weights that are not listed"):
        checksums.verify_checksums(copies / "merged")
    added.unlink()
    (copies / "merged" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: file of a published checkpoint is missing"):
        checksums.verify_checksums(copies / "merged")


def test_training_state_of_other_machines_need_not_be_listed(tmp_path):
    (tmp_path / "model.safetensors").touch()
    checksums.write_checksums(tmp_path)
    (tmp_path / "rng_state_1.pth").touch()
    assert list(checksums.verify_checksums(tmp_path)) == ["model.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"abc  model.safetensors\n", b"0" * 64 + b"  ../x\n"])
def test_an_invalid_list_is_an_error(tmp_path, content):
    (tmp_path / checksums.FILE_NAME).write_bytes(content)
    with pytest.raises(ModelError, match=checksums.FILE_NAME):
        checksums.verify_checksums(tmp_path)


def test_a_folder_without_a_list_is_not_checked(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"anything")
    assert checksums.verify_checksums(tmp_path) == {}
