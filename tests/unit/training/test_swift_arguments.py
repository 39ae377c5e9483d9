"""Arguments of ms-swift that depend on the model family."""

import pytest

from coordexp.modeling.families import family_named
from coordexp.recipe import parse_recipe
from coordexp.runtime.errors import ConfigError
from coordexp.training.swift_arguments import expert_arguments, trackers

ASKED = {"tuner_type": "coordexp", "lora_dropout": 0.0, "target_parameters": ["all-experts"]}


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_experts_are_named_by_the_family(family):
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert expert_arguments(ASKED, family_named(family)) == {"target_parameters": names}


def test_nothing_is_set_unless_the_recipe_asks_for_it():
    assert expert_arguments({"tuner_type": "coordexp"}, family_named("qwen3_vl")) == {}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen3_vl", {}, "the model has no experts"),
        ("qwen3_vl_moe", {"use_dora": True}, r"adapters of experts need another value of tuner\.use_dora"),
        ("qwen3_vl_moe", {"lora_dropout": 0.1}, r"adapters of experts need another value of tuner\.lora_dropout"),
        ("qwen3_vl_moe", {"tuner_type": "full"}, r"adapters of experts need another value of tuner\.tuner_type"),
    ],
)
def test_what_peft_cannot_do_with_experts_is_refused(family, change, message):
    with pytest.raises(ConfigError, match=f"target_parameters: {message}"):
        expert_arguments({**ASKED, **change}, family_named(family))


def reporting_to(value):
    return parse_recipe({"training": {"report_to": value}}, "own.yaml")


def test_trackers_are_added_to_tensorboard(monkeypatch):
    monkeypatch.setattr("coordexp.training.swift_arguments.find_spec", lambda name: None if name == "mlflow" else name)
    assert trackers(parse_recipe({}, "own.yaml")) == []
    assert trackers(reporting_to("wandb")) == ["wandb"]
    assert trackers(reporting_to(["tensorboard", "swanlab", "wandb"])) == ["swanlab", "wandb"]
    with pytest.raises(ConfigError, match="-> pip install mlflow"):
        trackers(reporting_to(["mlflow"]))
    with pytest.raises(ConfigError, match="report_to: unknown tracker, did you mean 'wandb'"):
        trackers(reporting_to(["wandbb"]))
