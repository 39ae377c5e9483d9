"""Recipes: `extends`, inline recipes, merging, and errors that name the key."""

import math
from pathlib import Path

import pytest
import yaml

from coordexp.recipe import load_recipe
from coordexp.runtime.config_io import merge
from coordexp.runtime.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]


RECIPES = sorted((REPOSITORY / "config" / "train").glob("*.yaml"))


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.custom.emit_norm == "norm1000"
    assert recipe.template["truncation_strategy"] == "raise"


def test_the_recipe_for_coco_has_the_values_of_the_record_and_names_what_is_absent():
    coco, lvis = (load_recipe(REPOSITORY / f"config/train/{name}.yaml") for name in ("coco", "lvis"))
    loss, training = coco.custom.loss, coco.training
    kept = {name: weight for name, weight in loss.weights.items() if weight}
    assert kept == {"text": 1, "ce": 1, "soft_ce": 1, "w1": 1, "coord_mass": 2}
    assert (loss.temperature, loss.sigma, loss.truncate) == (0.7, 1, 8)
    assert (training["learning_rate"], training["vit_lr"], training["aligner_lr"]) == (2e-4, 1e-4, 4e-4)
    assert (coco.custom.coord_offset.embed_lr, coco.tuner["use_dora"], coco.tuner["lora_rank"]) == (1e-4, True, 16)
    for recipe, images in ((coco, 118_287), (lvis, 100_170)):
        epoch = math.ceil(images / recipe.training["gradient_accumulation_steps"])
        assert abs(recipe.training["save_steps"] - epoch) <= 1
    assert coco.custom.category_ratio == 1 and coco.custom.negatives >= 80
    assert 0 < lvis.custom.category_ratio < 1 and lvis.custom.absent_only > 0


def test_extends_merges_maps_and_replaces_lists(tmp_path):
    write(
        tmp_path,
        base="training: {learning_rate: 1.0, seed: 1}\ntuner: {target_modules: [a, b]}",
        other="training: {seed: 2}",
        child="extends: [base.yaml, other.yaml]\ntraining: {max_steps: 5}\ntuner: {target_modules: [c]}",
    )
    recipe = load_recipe(tmp_path / "child.yaml", {"training": {"max_steps": 7}})
    assert recipe.training == {"learning_rate": 1.0, "seed": 2, "max_steps": 7}
    assert recipe.tuner == {"target_modules": ["c"]}


def test_circular_extends_is_an_error_that_shows_the_chain(tmp_path):
    write(tmp_path, a="extends: b.yaml", b="extends: a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml -> b\.yaml -> a\.yaml"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainning: {}", "did you mean 'training'"),
        ("custom: {emit_nrom: norm1000}", "custom.emit_nrom: unknown key, did you mean 'emit_norm'"),
        ("custom: {loss: {gioo: 1}}", "custom.loss.gioo: unknown key"),
        ("custom: {coord_offset: {ids: {start: 1, stop: 2}}}", "custom.coord_offset.ids.stop"),
        ("custom: {emit_norm: pixels}", "custom.emit_norm: unknown value .pixels."),
        (
            "training: {seed: 1}\ndata: {seed: 2}",
            "data.seed: already set in section `training`|training.seed: already set in section `data`",
        ),
        ("custom: {coord_offset: {enabled: true}}", "multimodal_coord_offset"),
        ("template: {system: You detect.}", r"template\.system: must not be set: inference would not use it"),
        ("data: {dataloader_multiprocessing_context: spawn}", "would stay in the first epoch"),
        (
            "training: {save_only_model: true}",
            r"training\.save_only_model: must not be set: an interrupted training run could not resume",
        ),
        (
            "training: {ignore_data_skip: true}",
            "ignore_data_skip: must not be set: an interrupted training run could not resume",
        ),
        (
            "training: {resume_only_model: true}",
            "resume_only_model: must not be set: an interrupted training run could not resume",
        ),
        ("training: {use_flash_ckpt: true}", "use_flash_ckpt: must not be set: a checkpoint must be complete when"),
        (
            "training: {save_strategy: no}",
            "save_strategy: must not be set: a checkpoint must be saved: it is the result; found False",
        ),
        (
            'training: {save_strategy: "no"}',
            "save_strategy: must not be set: a checkpoint must be saved: it is the result; found 'no'",
        ),
        ("training: {load_best_model_at_end: true}", "custom.detection_eval selects the checkpoint"),
        ("training: {average_tokens_across_devices: false}", "normalised over all processes"),
        (
            "training: {router_aux_loss_coef: 0.001}",
            "router_aux_loss_coef: must not be set: the loss has no router term",
        ),
        (
            "data: {split_dataset_ratio: 0.1}",
            r"split_dataset_ratio: must not be set: it has no effect; custom\.val_jsonl",
        ),
        ("data: {columns: {a: b}}", r"data\.columns: must not be set: it has no effect"),
        ("custom: {coord_tokens: {enabled: false}, loss: {set_targets: remaining}}", "set_targets: has no effect"),
        ("custom: {loss: {set_targets: remaining, balance: 0.5}}", "balance: has no effect"),
        (
            "custom: {coord_tokens: {enabled: false}, loss: {matching: hungarian, weights: {l1: 1}}}",
            "matching: has no effect",
        ),
        ("custom: {loss: {matching: hungarian}}", r"matching: has no effect(.|\n)*a weight for a box term \(l1"),
        (
            "custom: {coord_tokens: {enabled: false}, coord_offset: {enabled: true}}\n"
            "training: {optimizer: multimodal_coord_offset}",
            r"coord_offset\.enabled: has no effect(.|\n)*coord_tokens\.enabled: true",
        ),
        (
            "custom: {loss: {geometry_warmup: {start: 0.5, end: 0.2}}}",
            r"expected start <= end, found start 0\.5 and end 0\.2",
        ),
        ("custom: {loss: {sigma: 0}}", r"custom\.loss\.sigma: expected `float` > 0.0"),
        ("custom: {loss: {temperature: 0}}", r"custom\.loss\.temperature: expected `float` > 0.0"),
        ("custom: {answer_format: group}", r"custom\.answer_format: unknown(.|\n)*grouped"),
        ("custom: {answer_format: grouped, json_format: compact}", "json_format: has no effect"),
        (
            "custom: {answer_format: box_tokens, object_field_order: geometry_first}",
            r"object_field_order: has no effect(.|\n)*it needs custom\.answer_format: json",
        ),
        ("custom: {orders_per_sample: 3}", "orders_per_sample: has no effect"),
        ("custom: {augmentation: {crop_on_object: 0.5}}", r"crop_on_object: has no effect(.|\n)*crop above 0"),
        ("custom: {augmentation: {crop: 1, object_side: [0.3, 0.7]}}", r"object_side: has no effect"),
        ("custom: {category_ratio: 1, augmentation: {empty_answers: true}}", r"empty_answers: has no effect"),
        ("custom: {augmentation: {crop: 1, empty_answers: true}}", r"empty_answers: has no effect"),
        ("custom: {category_prompt: Find the listed things.}", "category_prompt: has no effect"),
        ("- a list", "expected a map of settings"),
        ("a: [", "invalid YAML"),
    ],
)
def test_errors_name_the_key(tmp_path, text, message):
    write(tmp_path, bad=text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "bad.yaml")


def test_an_unknown_loss_term_is_an_error_with_the_nearest_name(tmp_path):
    write(tmp_path, bad="custom: {loss: {weights: {gioo: 1}}}")
    with pytest.raises(
        ConfigError, match=r"custom\.loss\.weights\.gioo: unknown loss term 'gioo', did you mean 'giou'"
    ):
        load_recipe(tmp_path / "bad.yaml")


def test_an_inline_recipe_extends_files_relative_to_the_root(tmp_path):
    write(tmp_path, base="training: {seed: 1, max_steps: 2}", other="training: {max_steps: 3}")
    inline = {"extends": ["base.yaml", "other.yaml"], "custom": {"loss": {"weights": {"l1": 1}}}}
    recipe = load_recipe(inline, {"training": {"seed": 5}}, root=tmp_path)
    assert recipe.training == {"seed": 5, "max_steps": 3}
    assert recipe.custom.loss.weights["l1"] == 1
    assert load_recipe("base.yaml", root=tmp_path).training == {"seed": 1, "max_steps": 2}


def test_errors_of_an_inline_recipe_name_the_key():
    with pytest.raises(ConfigError, match=r"recipe: custom\.loss\.sigma"):
        load_recipe({"custom": {"loss": {"sigma": -1}}})


def test_options_of_samples_and_prompts_are_those_of_their_own_structs():
    custom = load_recipe({"custom": {"negatives": 2, "sample_seed": 3, "json_format": "compact"}}).custom
    assert (custom.samples.negatives, custom.samples.seed, custom.style.json_format) == (2, 3, "compact")
    with pytest.raises(ConfigError, match=r"custom\.category_ratio: expected `float` <= 1"):
        load_recipe({"custom": {"category_ratio": 2.0}})


def test_a_missing_parent_is_named(tmp_path):
    write(tmp_path, child="extends: nowhere.yaml")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: file not found"):
        load_recipe(tmp_path / "child.yaml")


def test_merge_does_not_change_its_inputs():
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}} and over == {"a": {"c": 2}}


@pytest.mark.parametrize("training", [{"save_strategy": "epoch"}, {"save_total_limit": 1}])
def test_selecting_a_checkpoint_needs_checkpoints_to_select_from(tmp_path, training):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"training": training, "custom": {"detection_eval": {"every": 5}}}))
    with pytest.raises(ConfigError, match="detection_eval"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("ratio", "metric", "found"),
    [
        (1.0, "AP", "another metric of phrases"),
        (1.0, "phrase_F1_50", None),
        (0.5, "phrase_F1_50", None),
        (0.5, "AP", None),
        (0.0, "phrase_F1_50", "a metric of detection"),
    ],
)
def test_checkpoints_are_selected_by_a_metric_of_the_prompts_that_are_evaluated(ratio, metric, found):
    custom = {"phrase_ratio": ratio, "detection_eval": {"every": 5, "metric": metric}}
    if found is None:
        assert load_recipe({"custom": custom}).custom.detection_eval.metric == metric
        return
    with pytest.raises(ConfigError, match=f"custom.detection_eval.metric(.|\n)*{found}"):
        load_recipe({"custom": custom})


def test_the_prompt_of_phrases_contains_the_phrase():
    with pytest.raises(ConfigError, match=r"phrase_prompt(.|\n)*\{phrase\} in the text"):
        load_recipe({"custom": {"phrase_prompt": "Find it."}})
