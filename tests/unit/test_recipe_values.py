"""Numbers of a recipe outside their range, non-finite numbers and unknown arguments are refused when it is loaded."""

import typing

import pytest

from coordexp.ms_swift_arguments import NAMES, Optimizer, Ranges, Scheduler
from coordexp.recipe import load_recipe
from coordexp.runtime.errors import ConfigError

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "per_device_train_batch_size", 0),
        ("training", "gradient_accumulation_steps", 0),
        ("training", "learning_rate", -1e-4),
        ("training", "learning_rate", 0),
        ("training", "learning_rate", "fast"),
        ("training", "learning_rate", NAN),
        ("training", "learning_rate", "nan"),
        ("training", "max_steps", 0),
        ("training", "max_steps", -5),
        ("training", "max_steps", 2.5),
        ("training", "num_train_epochs", 0),
        ("training", "warmup_ratio", 1.5),
        ("training", "weight_decay", -0.1),
        ("training", "save_steps", 0),
        ("training", "save_total_limit", 0),
        ("training", "adam_beta2", 1),
        ("training", "rope_theta", INFINITE),
        ("training", "learning_rat", 1e-4),
        ("template", "max_length", 0),
        ("template", "max_lenght", 10),
        ("data", "dataloader_num_workers", -1),
        ("tuner", "lora_rank", 0),
        ("tuner", "lora_dropout", 1.0),
        ("model", "model_kwargs", {"a": [1.0, NAN]}),
        ("custom", "category_ratio", NAN),
        ("custom", "category_ratio", 1.5),
        ("custom", "loss", {"sigma": INFINITE}),
        ("custom", "loss", {"sigma": "inf"}),
        ("custom", "loss", {"weights": {"ce": NAN}}),
        ("custom", "loss", {"weights": {"ce": -1}}),
        ("custom", "loss", {"geometry_warmup": {"start": 0.8, "end": 0.2}}),
        ("custom", "augmentation", {"scale": [2.0, 1.0]}),
        ("custom", "augmentation", {"crop_area": [0.9, 0.1]}),
        ("custom", "augmentation", {"flip": 2}),
        ("custom", "detection_eval", {"images": 0}),
        ("custom", "coord_offset", {"embed_lr": -1}),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(section, key, value):
    with pytest.raises(ConfigError) as caught:
        load_recipe({section: {key: value}}, name="runs.a.recipe")
    assert f"runs.a.recipe: {section}.{key}" in str(caught.value)


def test_a_section_that_is_no_map_is_refused():
    with pytest.raises(ConfigError, match="training: expected a map of arguments; found 3"):
        load_recipe({"training": 3})


def test_text_that_reads_as_a_number_and_null_are_allowed():
    assert load_recipe({"training": {"learning_rate": "1e-4", "max_steps": -1, "save_total_limit": None}})


def test_every_problem_is_listed():
    with pytest.raises(ConfigError) as caught:
        load_recipe({"training": {"learning_rate": -1, "max_steps": 0}, "tuner": {"lora_rnak": 8}})
    assert len(str(caught.value).splitlines()) == 3 and "did you mean 'lora_rank'?" in str(caught.value)


def test_the_names_are_those_of_the_installed_ms_swift():
    from swift.arguments import SftArguments

    assert set(typing.get_type_hints(SftArguments)) == NAMES
    assert set(Ranges.__struct_fields__) <= NAMES


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "lr_scheduler_type", "cosin"),
        ("training", "optim", "adamx"),
        ("training", "bf16", "perhaps"),
        ("training", "eval_strategy", "always"),
        ("training", "logging_strategy", "never"),
        ("training", "seed", 2**40),
        ("training", "deepspeed", "zero9"),
        ("tuner", "lora_bias", "some"),
        ("tuner", "use_rslora", "maybe"),
        ("model", "torch_dtype", "float17"),
        ("model", "attn_impl", "flash9"),
    ],
)
def test_a_choice_that_ms_swift_would_refuse_after_the_download_is_refused(section, key, value):
    with pytest.raises(ConfigError, match=rf"{section}\.{key}"):
        load_recipe({section: {key: value}})


def test_the_choices_are_those_of_the_installed_transformers():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(typing.get_args(Optimizer)) == {name.value for name in OptimizerNames}
    assert set(typing.get_args(Scheduler)) == {name.value for name in SchedulerType}


@pytest.mark.parametrize("value", ["zero3", "ds.json", '{"zero_optimization": {}}', {"zero_optimization": {}}, None])
def test_a_deepspeed_configuration_is_a_name_a_file_or_json(value):
    assert load_recipe({"training": {"deepspeed": value}, "model": {"attn_impl": "org/kernel"}})
