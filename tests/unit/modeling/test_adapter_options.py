"""Adapters that cannot be merged exactly are refused in the recipe, before training, and by the merge."""

import dataclasses
import json

import modeling_helpers as helpers
import pytest
import torch
from peft import LoraConfig

from coordexp.modeling import merge
from coordexp.modeling.adapter_options import lora_settings, nested_modules
from coordexp.recipe import Custom, Recipe, parse_recipe
from coordexp.runtime.errors import ConfigError, ModelError
from coordexp.training.train import train

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True}


@pytest.mark.parametrize(
    "value", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "lora-ga", "eva", "new", 3]
)
def test_initialisations_that_cannot_be_merged_are_refused_in_the_recipe(value):
    with pytest.raises(ConfigError, match=r"tuner\.init_weights: must not be set: the base would change with it"):
        parse_recipe({"tuner": {"init_weights": value}}, "recipe.yaml")


@pytest.mark.parametrize("value", [True, "true", False, "gaussian", "orthogonal", "mica"])
def test_initialisations_that_keep_the_base_are_accepted(value):
    parse_recipe({"tuner": {"init_weights": value}}, "recipe.yaml")
    saved = value if isinstance(value, bool) else {"true": True}.get(value, value)
    lora_settings(PLAIN | {"init_lora_weights": saved}, "adapter_config.json")


@pytest.mark.parametrize(
    "tuner",
    [
        *({"tuner_type": name} for name in ("adalora", "vera", "boft", "reft", "longlora", "llamapro", "lora_llm")),
        {"tuner_backend": "unsloth"},
        {"use_swift_lora": True},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"adapters": ["/models/adapter"]},
        {"modules_to_save": ["merger", "merger.linear_fc1"]},
    ],
    ids=str,
)
def test_tuners_whose_result_cannot_be_merged_are_refused_in_the_recipe(tuner):
    with pytest.raises(ConfigError, match=f"{next(iter(tuner))}: (must not be set|selects)"):
        parse_recipe({"tuner": tuner}, "recipe.yaml")


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "lora-ga", "new"])
def test_initialisations_that_change_the_base_are_refused_by_the_merge(value):
    with pytest.raises(ModelError, match="init_lora_weights: this initialisation also changed the base weights"):
        lora_settings(PLAIN | {"init_lora_weights": value}, "adapter_config.json")


@pytest.mark.parametrize(
    "option",
    [
        {"alora_invocation_tokens": [1, 2]},
        {"lora_ga_config": {"direction": "ArB2r"}},
        {"corda_config": {"corda_method": "kpm"}},
        {"loftq_config": {"loftq_bits": 4}},
        {"velora_config": {"num_groups": 4}},
        {"monteclora_config": {"sample_scaler": 1e-4}},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"arrow_config": {"top_k": 2}},
        {"lora_bias": True},
        {"megatron_config": {"a": 1}},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [7]},
        {"ensure_weight_tying": True},
        {"use_a_later_variant": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_that_change_the_formula_are_refused_by_the_merge(option):
    with pytest.raises(ModelError, match=f"{next(iter(option))}: merging does not support this option"):
        lora_settings(PLAIN | option, "adapter_config.json")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"peft_type": "LORA"},
        PLAIN | {"lora_alpha": "8"},
        PLAIN | {"modules_to_save": "merger"},
        PLAIN | {"alpha_pattern": {"(": 1.0}},
        PLAIN | {"coord_offset": {"start": "0"}},
        PLAIN | {"use_rslora": 2},
    ],
    ids=str,
)
def test_a_malformed_adapter_configuration_is_an_error(content):
    with pytest.raises(ModelError):
        lora_settings(content, "adapter_config.json")


def test_every_option_of_this_peft_is_decided_by_name():
    """A field that is off by default and missing from both lists would be refused only when it is used."""
    defaults = LoraConfig().to_dict()
    defaults.pop("runtime_config", None)
    lora_settings(defaults | {"peft_type": "LORA"}, "adapter_config.json")
    assert {field.name for field in dataclasses.fields(LoraConfig)} >= {"velora_config", "monteclora_config"}


def test_nested_saved_modules_are_found_among_the_tensors_of_the_base():
    names = ["visual.merger.linear_fc1.weight", "visual.merger.norm.weight", "visual.blocks.0.mlp.linear_fc1.weight"]
    assert nested_modules(["merger", "linear_fc1"], names) == ("visual.merger", "visual.merger.linear_fc1")
    assert nested_modules(["merger", "all-norm"], names) == ("visual.merger", "visual.merger.norm")
    assert nested_modules(["linear_fc1", "all-embedding"], names) is None
    assert nested_modules([], names) is None


@pytest.mark.parametrize("initialisation", ["gaussian", "orthogonal", "mica", False])
def test_accepted_initialisations_merge_exactly(tmp_path, initialisation):
    base = helpers.expanded(tmp_path, tie=True)
    model = helpers.adapted(base, offset=False, target_modules=r".*k_proj", init_lora_weights=initialisation)
    model.save_pretrained(tmp_path / "adapter")
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    batch = helpers.batch(base)
    with torch.no_grad():
        expected, found = (m(**batch).logits for m in (model, helpers.load(tmp_path / "merged")))
    assert torch.allclose(expected, found, atol=1e-4)


def test_nested_saved_modules_are_refused_before_training_and_by_the_merge(tmp_path):
    base = helpers.expanded(tmp_path, tie=True)
    nested = ["merger", "linear_fc2"]
    recipe = Recipe({}, {}, {}, {"modules_to_save": nested}, {}, Custom())
    with pytest.raises(
        ConfigError, match=r"modules_to_save: selects model\.visual\.merger\.linear_fc2, which is part of"
    ):
        train(recipe, base, tmp_path / "out", tmp_path / "log.jsonl")
    adapter = helpers.adapted(base, offset=False, target_modules=r".*k_proj", modules_to_save=nested)
    adapter.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["modules_to_save"] == nested
    with pytest.raises(ModelError, match=r"linear_fc2 was trained separately from model\.visual.merger"):
        merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
