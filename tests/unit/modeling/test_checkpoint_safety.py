"""Checkpoints with code, and folders that do not exist, are refused by every command that opens a checkpoint."""

import json
import socket

import pytest

from coordexp import cli
from coordexp.answers.render import PromptStyle
from coordexp.doctor import examine
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.modeling import base_model, merge, vocab
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.recipe import Custom, Recipe
from coordexp.runtime.errors import CoordExpError, ModelError
from coordexp.training.train import train

OPENERS = {
    "expand": lambda folder, out: vocab.expand(folder, out / "new"),
    "check": lambda folder, out: vocab.check(folder),
    "merge": lambda folder, out: merge.merge(folder, folder, out / "new"),
    "fetch": lambda folder, out: base_model.fetch("m", {"source": "path", "path": str(folder)}, out / "new"),
    "predict": lambda folder, out: Predictor.from_checkpoint(folder, PredictOptions(), PromptStyle()),
    "doctor": lambda folder, out: examine(out / "absent.jsonl", 0, folder, Custom()),
    "train": lambda folder, out: train(Recipe({}, {}, {}, {}, {}, Custom()), folder, out / "new", out / "log.jsonl"),
}


@pytest.fixture
def offline(monkeypatch):
    def connect(*args, **kwargs):
        raise AssertionError("a network connection")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "sub/config.json"])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_checkpoint_with_code_is_refused(tmp_path, offline, opener, name):
    file = tmp_path / "model" / name
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"text_config": [{"auto_map": {"AutoConfig": "evil.Config"}}]}))
    with pytest.raises(ModelError, match="contains code"):
        OPENERS[opener](tmp_path / "model", tmp_path)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_folder_that_does_not_exist_is_an_error(tmp_path, monkeypatch, offline, opener):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CoordExpError, match=r"no such|no checkpoint"):
        OPENERS[opener]("owner/name", tmp_path)


@pytest.mark.parametrize("text", ['{"\\u0061uto_map": {}}', '{"auto_map": {},}', '{"auto_map": ' + "[" * 100_000])
def test_escaped_and_damaged_files_with_the_key_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="contains code"):
        check_checkpoint(tmp_path)


def test_an_ordinary_folder_is_accepted(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x", "note": "no auto_map here"}')
    assert check_checkpoint(tmp_path) == tmp_path


def test_the_commands_print_the_error(tmp_path, offline, capsys):
    commands = [["doctor", "x.jsonl", "--model", "owner/name"], ["detect", "x.jpg", "--model", "owner/name"]]
    for command in commands:
        assert cli.main(command) == 2
        assert "no such checkpoint folder" in capsys.readouterr().err
