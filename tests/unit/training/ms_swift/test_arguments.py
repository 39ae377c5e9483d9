"""ms-swift accepts the arguments of every shipped recipe; wrong ones are named."""

import importlib.util
import json
import os
from pathlib import Path

import msgspec
import pytest
import swift

from coordexp.recipe import load_recipe
from coordexp.runtime.errors import ConfigError
from coordexp.training.ms_swift import custom_section as settings
from coordexp.training.swift_arguments import swift_arguments

REPOSITORY = Path(__file__).resolve().parents[4]
RECIPES = sorted((REPOSITORY / "config" / "train").glob("*.yaml"))


@pytest.fixture
def construct(shapes_data, tiny_model, tmp_path, monkeypatch):
    """ms-swift's arguments of a recipe, constructed with the tiny model; DeepSpeed is left out where it is missing."""
    from swift.arguments import SftArguments

    from coordexp.training.ms_swift import plugin
    from coordexp.training.ms_swift.arguments import checked

    plugin.register()

    def make(path, **changes):
        data = {name: str(shapes_data / f"{name.split('_')[0]}.coord.jsonl") for name in ("train_jsonl", "val_jsonl")}
        recipe = load_recipe(path, {"custom": data, **changes})
        monkeypatch.setenv(settings.VARIABLE, json.dumps(msgspec.to_builtins(recipe.custom)))
        settings.custom_section.cache_clear()
        arguments = checked(swift_arguments(recipe, tiny_model, tmp_path / "out", tmp_path / "log"))
        arguments["use_cpu"] = True  # bfloat16 is refused elsewhere
        if importlib.util.find_spec("deepspeed") is None:
            arguments.pop("deepspeed", None)
        return recipe, SftArguments(**arguments)

    before = dict(os.environ)
    yield make
    for name in os.environ.keys() - before.keys():
        monkeypatch.delenv(name)
    settings.custom_section.cache_clear()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_ms_swift_accepts_every_argument_of_a_recipe(construct, path):
    recipe, args = construct(path)
    for key, value in recipe.swift_arguments.items():
        if key == "truncation_strategy":
            assert args.get_template_kwargs()[key] == "raise"
        elif key == "torch_dtype":
            assert str(args.torch_dtype).endswith(value)
        elif key != "deepspeed":
            assert getattr(args, key) == value, key
    trained = args.training_args
    assert trained.per_device_train_batch_size == recipe.training["per_device_train_batch_size"]
    assert trained.gradient_accumulation_steps == recipe.training["gradient_accumulation_steps"]
    assert trained.bf16 == (recipe.model["torch_dtype"] == "bfloat16")
    assert args.strict and not trained.push_to_hub


def test_deepspeed_is_configured_by_ms_swifts_name():
    folder = Path(swift.__file__).parent / "config"
    named = {load_recipe(path).training.get("deepspeed") for path in RECIPES} - {None}
    assert named == {"zero2"}
    config = json.loads((folder / "zero2.json").read_text())
    assert config["zero_optimization"]["stage"] == 2


def test_the_batch_size_of_the_larger_recipes_is_as_documented():
    def images(name, processes):
        training = load_recipe(REPOSITORY / f"config/train/{name}.yaml").training
        return training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * processes

    assert images("sft_24gb", 1) == 16
    assert images("sft_8x80gb", 8) == images("sft_multinode", 16) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"learning_rat": 1}}, "learning_rat: ms-swift has no such .*mean 'learning_rate'"),
        (
            {"training": {"learning_rate": "fast"}},
            "learning_rate: expected `float",
        ),
        (
            {"training": {"eval_strategy": False}},
            r"eval_strategy: expected (.|\n)*found (F|f)alse",
        ),
        (
            {"tuner": {"target_modules": "all-linear"}},
            "target_modules: wrong type for this ms-swift argument: Expected `array`",
        ),
        ({"training": {"output_dir": "x"}}, "output_dir: set by the workflow"),
    ],
)
def test_a_wrong_argument_is_named(construct, changes, message):
    with pytest.raises(ConfigError, match=message):
        construct(REPOSITORY / "config/train/full_tiny.yaml", **changes)


def test_numbers_that_yaml_reads_as_text_are_accepted(construct, tmp_path):
    (tmp_path / "own.yaml").write_text(
        f"extends: {REPOSITORY / 'config/train/full_tiny.yaml'}\ntraining: {{learning_rate: 3e-4}}"
    )
    assert construct(tmp_path / "own.yaml")[1].learning_rate == 3e-4
