"""Checkpoints with code, and folders that do not exist, are refused by every command that opens a checkpoint."""

import errno
import json
import os
import re
import socket

import pytest

from coordexp import cli
from coordexp.answers.render import PromptStyle
from coordexp.doctor import examine
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.modeling import base_model, merge, vocab
from coordexp.modeling.checkpoint_safety import check_checkpoint, library_errors
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


@pytest.mark.parametrize("name", ["modeling_qwen.py", "sub/custom_generate.py", "kernel.so"])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_checkpoint_with_a_python_file_is_refused(tmp_path, offline, opener, name):
    file = tmp_path / "model" / name
    file.parent.mkdir(parents=True)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    file.write_text("raise SystemExit")
    with pytest.raises(ModelError, match="contains code"):
        OPENERS[opener](tmp_path / "model", tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt", "sub/weights.pkl", "a.ckpt"])
def test_pickled_weights_are_refused(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="pickled weights"):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "rng_state_3.pth", "training_args.bin", "global_step7/zero_pp_rank_0.pt", "zero_to_fp32.py"],
)
def test_what_a_trainer_keeps_to_resume_is_not_read_and_accepted(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x80\x04")
    check_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat_template.jinja", "notes.txt", "sub/pipe"])
@pytest.mark.parametrize("opener", [name for name in OPENERS if name != "merge"])
def test_a_fifo_is_refused_without_being_opened(tmp_path, offline, opener, name):
    file = tmp_path / "model" / name
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    with pytest.raises(ModelError, match="FIFO, socket or device"):
        OPENERS[opener](tmp_path / "model", tmp_path)


def test_a_link_to_a_device_is_refused(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="FIFO, socket or device"):
        check_checkpoint(tmp_path)


def test_an_adapter_beside_a_model_is_refused_because_transformers_would_load_its_base_from_a_hub(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(ModelError, match="a model and an adapter"):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "not JSON"),
        ("[" * 10_000, "not JSON"),
        ('{"model_type": 3}', "malformed: Expected `str | null`"),
        ('{"text_config": []}', "malformed"),
        ('{"vision_config": {"patch_size": "16"}}', "malformed"),
        ('{"text_config": {"num_hidden_layers": 1000000000}}', "text_config.num_hidden_layers: implausible size"),
        ('{"text_config": {"hidden_size": -1}}', "text_config.hidden_size: implausible size"),
        ('{"attn_implementation": "owner/kernel"}', "attn_implementation: the kernel of a model hub"),
    ],
)
def test_a_malformed_configuration_is_an_error_with_file_and_field(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=re.escape(message)) as error:
        check_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"model_max_length": {"a": 1}}),
        ("tokenizer_config.json", {"added_tokens_decoder": []}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}),
        ("preprocessor_config.json", {"image_std": [0.5, 0.0, 0.5]}),
        ("preprocessor_config.json", {"patch_size": "16"}),
    ],
    ids=str,
)
def test_a_malformed_configuration_of_a_processor_is_an_error(tmp_path, name, content):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"{name}: malformed"):
        check_checkpoint(tmp_path)


def test_an_error_of_a_library_becomes_one_line_and_lack_of_memory_stays(tmp_path):
    with pytest.raises(ModelError, match=r"cannot load it: KeyError: 'x'"), library_errors("load it", tmp_path):
        raise KeyError("x")
    for error in (MemoryError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ModelError("own")):
        with pytest.raises(type(error)), library_errors("load it", tmp_path):
            raise error


def test_the_commands_print_the_error(tmp_path, offline, capsys):
    commands = [["doctor", "x.jsonl", "--model", "owner/name"], ["detect", "x.jpg", "--model", "owner/name"]]
    for command in commands:
        assert cli.main(command) == 2
        assert "no such checkpoint folder" in capsys.readouterr().err
