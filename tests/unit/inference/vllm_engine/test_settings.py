"""How vLLM is started, and what is reported where it is not installed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys

import msgspec
import pytest

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings
from coordexp.answers.render import PromptStyle
from coordexp.cli.serve import has_key, server_command
from coordexp.inference.detector import Detector
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.vllm_engine import settings
from coordexp.runtime.errors import ConfigError
from coordexp.runtime.io import write_json


@pytest.fixture
def without_vllm(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    monkeypatch.delenv(settings.PYTHON, raising=False)


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr(settings, "check_installed", lambda: None)


def test_the_engine_is_an_error_with_its_remedy_where_vllm_is_not_installed(without_vllm, tiny_model, tmp_path):
    options = PredictOptions(engine="vllm")
    calls = [
        settings.check_available,
        lambda: predict(tiny_model, tmp_path / "none.jsonl", tmp_path / "p.jsonl", options, PromptStyle()),
        lambda: Detector(tiny_model, engine="vllm", lazy=True),
        lambda: server_command(argparse.Namespace(model=str(tiny_model), revision=None)),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"vllm is not installed(.|\n)*COORDEXP_VLLM_PYTHON"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_workflow_accepts_the_python_of_another_environment(without_vllm, monkeypatch):
    monkeypatch.setenv(settings.PYTHON, sys.executable)
    settings.check_available()
    monkeypatch.setenv(settings.PYTHON, "/nowhere/python")
    with pytest.raises(ConfigError, match="COORDEXP_VLLM_PYTHON"):
        settings.check_available()


def test_a_command_continues_with_the_python_of_the_other_environment(tmp_path):
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\necho "other $@"\n')
    other.chmod(0o755)
    code = "from coordexp.inference.vllm_engine.settings import use_python_of_vllm as use; use(); print('same')"
    hidden = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *r: None if n == 'vllm' else f(n, *r)"
    )
    env = {"PYTHONPATH": ":".join(sys.path), settings.PYTHON: str(other)}

    def run(env: dict[str, str]) -> str:
        command = [sys.executable, "-c", f"{hidden}; {code}"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    assert run(env).startswith("other -c ")
    assert run({"PYTHONPATH": env["PYTHONPATH"]}) == "same\n"


def test_importing_coordexp_does_not_import_vllm():
    code = "import sys, coordexp, coordexp.cli, coordexp.inference.predict; print('vllm' in sys.modules)"
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_server_gets_the_settings_that_the_checkpoint_was_trained_with(
    with_vllm, tiny_model, tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    style = PromptStyle(object_field_order="geometry_first")
    recorded = InferenceSettings(style=style, temperature=0.5, max_blocks=9, min_blocks=4, factor=32)
    write_json(folder / FILE_NAME, msgspec.to_builtins(recorded))
    given = argparse.Namespace(
        model=str(folder), revision=None, host="127.0.0.1", port=8000, polygons=True, vllm=["--max-num-seqs", "4"]
    )
    monkeypatch.setattr(settings, "vllm_version", lambda *names: settings.VLLM_VERSION)
    command, variables = server_command(given)
    assert command[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", str(folder)] and command[-1] == "4"
    options = {command[n]: command[n + 1] for n in range(5, len(command) - 1) if command[n].startswith("--")}
    assert variables[settings.COORDINATES] == "token"
    assert options["--host"] == "127.0.0.1" and options["--dtype"] == "float32"
    assert "--no-async-scheduling" in command and "--no-trust-remote-code" in command
    assert json.loads(options["--mm-processor-kwargs"])["size"] == {"shortest_edge": 4096, "longest_edge": 9216}
    plugin = msgspec.convert(json.loads(options["--additional-config"])[settings.CONFIG_KEY], settings.PluginConfig)
    assert plugin.style == style and plugin.options.temperature == 0.5
    assert plugin.options.geometry == ("bbox_2d", "poly") and plugin.options.max_new_tokens == settings.UNLIMITED


def test_the_first_model_runner_is_chosen_and_other_variables_are_kept(monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    found = settings.environment()
    assert found["VLLM_USE_V2_MODEL_RUNNER"] == "0" and "VLLM_CPU_KVCACHE_SPACE" not in found
    assert found["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"labels": "cat"}, "labels"),
        ({"labels": ["cat", "<|coord_1|>"]}, "labels"),
        ({"sample": "one"}, "sample"),
        ({"sample": 1, "identity": 5}, "identity"),
        ({"identity": [1, [2]]}, "identity"),
        ({"coordexp_key": []}, "coordexp_key"),
    ],
)
def test_a_request_whose_arguments_would_stop_the_engine_is_rejected(given, field):
    assert settings.argument_problem(given).startswith(f"{field}:")
    assert settings.argument_problem({"labels": ["cat"], "coordinates": 1, "sample": 1, "identity": [3, "a"]}) is None


def test_a_server_rejects_parameters_that_may_forbid_every_coordinate_and_other_engines_accept_them(monkeypatch):
    masked = argparse.Namespace(structured_outputs=None, min_tokens=0, bad_words=["a"], extra_args=None)
    monkeypatch.delenv(settings.COORDINATES, raising=False)
    assert settings.request_problem(masked) is None
    monkeypatch.setenv(settings.COORDINATES, "token")
    assert settings.request_problem(masked).startswith("bad_words:")
    assert settings.request_problem(argparse.Namespace(extra_args={"labels": []})).startswith("labels:")
    assert settings.request_problem(argparse.Namespace(min_tokens=0, extra_args={"labels": ["cat"]})) is None


def test_labels_are_rejected_by_a_server_of_text_integers(monkeypatch):
    """Its grammar cannot be restricted; an error in the engine would stop the server."""
    monkeypatch.setenv(settings.COORDINATES, "integer")
    assert "text integers" in settings.argument_problem({"labels": ["cat"]})
    assert settings.argument_problem({"coordinates": 1}) is None


@pytest.mark.parametrize("options", [["--api-key", "secret"], ["--port", "1", "--api-key=secret"]])
def test_a_server_with_a_key_may_be_reachable_without_a_warning(options, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert has_key(options) and not has_key(["--max-num-seqs", "4"])
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert has_key([])
