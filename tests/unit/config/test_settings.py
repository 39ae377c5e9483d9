"""What the rules ask the configuration: recipes, files of training, prediction and evaluation, splits."""

import os

import pytest
from config_cases import CONFIG, FULL_TINY, REPOSITORY, load, with_runs

from coordexp.config.settings import Settings, over_defaults
from coordexp.runtime.errors import ConfigError

PIXEL = {"coord_tokens": {"skip_bbox_norm": False}}
PHOTOS = {
    "format": "coco",
    "annotations": dict.fromkeys(("trainval", "dev", "test-std", "test"), "a.json"),
    "image_dirs": {split: ["images"] for split in ("trainval", "dev", "test-std", "test")},
}
ROLES = {"train": "trainval", "val": "dev", "test": "test-std"}


def test_the_shipped_configuration_is_valid():
    settings = load()
    assert set(settings.datasets) >= {"shapes", "crowds", "lvis", "coco", "photos", "photos_overfit"}
    for name in settings.runs.entries:
        settings.recipe(f"{name}_9" if name in settings.datasets else name)


def test_changes_are_merged_over_the_defaults():
    settings = Settings.load(over_defaults({"data": {"tiny": 7}}, REPOSITORY), REPOSITORY)
    assert (settings.data.tiny, settings.data.factor) == (7, CONFIG["data"]["factor"])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (FULL_TINY, {"extends": FULL_TINY}),
        ({"training": {"seed": 2}}, {"extends": "config/train/sft_base.yaml", "training": {"seed": 2, "max_steps": 1}}),
        ({"extends": FULL_TINY, "training": {"seed": 2}}, {"extends": FULL_TINY, "training": {"seed": 2}}),
    ],
)
def test_a_recipe_replaces_the_parent_s_unless_it_extends_nothing(recipe, expected):
    parent = {"extends": "config/train/sft_base.yaml", "training": {"max_steps": 1}}
    settings = with_runs(
        lora={"records_from": "lvis_768", "recipe": parent}, other={"records_from": "lora", "recipe": recipe}
    )
    assert settings.run("other").recipe == expected


def test_an_inline_recipe_may_extend_several_files():
    files = ["config/train/sft_base.yaml", FULL_TINY]
    settings = with_runs(mine={"extends": "lvis_768", "recipe": {"extends": files, "training": {"max_steps": 5}}})
    recipe = settings.recipe("mine")
    assert (recipe.tuner["tuner_type"], recipe.tuner["lora_rank"], recipe.training["max_steps"]) == ("full", 32, 5)


@pytest.mark.parametrize(
    ("data", "predict", "kinds"),
    [
        ({}, {}, ["bbox_2d"]),
        ({"geometry": "poly"}, {}, ["bbox_2d", "poly"]),  # a polygon that simplifies badly is a box
        ({"geometry": "poly"}, {"geometry": ["poly"]}, ["poly"]),
    ],
)
def test_predictions_contain_the_geometry_of_the_records_unless_told_otherwise(data, predict, kinds):
    settings = load(lambda c: (c["data"].update(data, poly_max_points=9), c["predict"].update(predict)))
    options = settings.prediction("shapes_9")["options"]
    assert (list(options["geometry"]), options["poly_max_points"]) == (kinds, 9)


@pytest.mark.parametrize(
    ("predict", "custom"),
    [
        ({"restrict_labels": True}, {"coord_tokens": {"enabled": False}}),
        ({"continue_above": 0.1}, {"coord_tokens": {"enabled": False}}),
        ({"continue_above": 0.1}, {"object_field_order": "geometry_first"}),
        ({"continue_above": 0.1, "geometry": ["bbox_2d", "poly"]}, {}),
    ],
)
def test_options_that_the_answers_of_a_run_do_not_support_are_errors_before_training(predict, custom):
    run = {"extends": "shapes_9", "predict": predict, "recipe": {"extends": FULL_TINY, "custom": custom}}
    settings = with_runs(mine=run, fine=run | {"predict": {"continue_above": None, "restrict_labels": False}})
    assert settings.prediction("fine")
    with pytest.raises(ConfigError, match=rf"runs\.mine\.predict\.{next(iter(predict))}"):
        settings.prediction("mine")


def test_records_of_the_workflow_depend_on_the_manifest_of_their_images():
    settings = load(lambda c: c)
    records = [settings.records("lvis_768", name) for name in ("train_rest.coord", "calibration", "val_tiny", "train")]
    train, val = (f"results/lvis_768/data/{split}.images.json" for split in ("train", "val"))
    assert settings.images(*records, "own/val.jsonl") == [train, val]
    assert settings.images("results/other_4/data/val.coord.jsonl") == ["results/other_4/data/val.images.json"]
    assert settings.images("results/lvis_768/eval/predictions.jsonl") == []


def test_a_mixture_names_its_files_as_the_rules_do(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    mixed = {"custom": {"fusion_config": "config/fusion/shapes_twice.yaml"}}
    settings = with_runs(shapes_9={"recipe": mixed})
    assert settings.mixture("shapes_16") == []
    assert settings.mixture("shapes_9") == [
        "config/fusion/shapes_twice.yaml",
        "results/shapes_9/data/train.coord.jsonl",
        "results/shapes_16/data/train.coord.jsonl",
    ]


def test_training_depends_on_the_category_tables_of_a_mixture(monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    text = "sources: {a: {jsonl: a.jsonl, categories: a.source.json}, b: {jsonl: b.jsonl}}"
    (tmp_path / "mix.yaml").write_text(text)
    mixed = {"custom": {"fusion_config": str(tmp_path / "mix.yaml")}}
    settings = with_runs(shapes_9={"recipe": mixed})
    *records, table = (os.path.relpath(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "a.source.json"))
    assert settings.mixture("shapes_9")[1:] == [*records, table]
    assert settings.mixture("shapes_9", tables=False)[1:] == records  # what calibration images must not be in


def test_tokens_of_another_codec_are_not_trained_on():
    legacy = {"custom": {"emit_norm": "norm1000_legacy"}}
    with pytest.raises(ConfigError, match="the tokens of lvis_768 were quantised with a different codec"):
        load(lambda c: c["runs"]["lora"].update(recipe=legacy)).trained_on("lora", "train")
    both = with_runs(
        lvis={**CONFIG["runs"]["lvis"], "recipe": {"extends": "config/train/sft_coord_offset.yaml", **legacy}},
        lora={"records_from": "lvis_768"},
    )
    assert both.trained_on("lora", "train") == "results/lvis_768/data/train.coord.jsonl"


@pytest.mark.parametrize(
    ("custom", "images", "train", "val"),
    [
        ({}, 0, "results/shapes_9/data/train.coord.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        ({}, 5, "results/shapes_9/data/train_rest.coord.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        (PIXEL, 0, "results/shapes_9/data/train.jsonl", "results/shapes_9/data/val_tiny.jsonl"),
        (PIXEL, 5, "results/shapes_9/data/train_rest.jsonl", "results/shapes_9/data/val_tiny.jsonl"),
        ({"train_jsonl": "own.jsonl"}, 5, "own.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        (PIXEL | {"val_jsonl": "own.jsonl"}, 5, "results/shapes_9/data/train_rest.jsonl", "own.jsonl"),
    ],
)
def test_training_reads_the_recipe_s_own_file_or_the_run_s_in_its_space(custom, images, train, val):
    settings = load(
        lambda c: (c["runs"].update(shapes_9={"recipe": {"custom": custom}}), c["calibrate"].update(images=images))
    )
    assert [settings.trained_on("shapes_9", split) for split in ("train", "val")] == [train, val]


def with_roles(**entry):
    def change(config):
        config["datasets"]["own"] = PHOTOS
        config["runs"]["own"] = {"model": "tiny", "recipe": FULL_TINY, "data": {"roles": ROLES}, **entry}

    return load(change)


def test_splits_may_have_any_names_and_roles_name_their_purpose():
    settings = with_roles(predict={"split": "test"})
    assert settings.trained_on("own_9", "train") == "results/own_9/data/trainval.coord.jsonl"
    assert settings.trained_on("own_9", "val") == "results/own_9/data/dev_tiny.coord.jsonl"
    assert settings.evaluated_split("own_9") == "test-std"
    assert [settings.conversion("own_9", s)["keep_empty"] for s in ("trainval", "dev")] == [True, True]


def test_only_the_training_split_may_leave_out_images_without_objects():
    settings = with_roles(data={"roles": ROLES, "keep_empty": False})
    kept = {split: settings.conversion("own_9", split)["keep_empty"] for split in ("trainval", "dev", "test-std")}
    assert kept == {"trainval": False, "dev": True, "test-std": True}


@pytest.mark.parametrize(
    ("name", "split"),
    [("val_tiny", "dev"), ("dev", "dev"), ("train", "trainval"), ("test-std_tiny", "test-std"), ("test", "test-std")],
)
def test_the_predicted_split_is_a_role_or_a_name(name, split):
    assert with_roles(predict={"split": name}).evaluated_split("own_9") == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("trainval.coord", "trainval"),
        ("dev_tiny", "dev"),
        ("test-std", "test-std"),
        ("train_rest.coord", "trainval"),
        ("calibration", "trainval"),
        ("trainval_of_mine", "trainval"),
        ("elsewhere", None),
    ],
)
def test_images_of_records_are_those_of_their_split(name, split):
    found = with_roles().images(f"results/own_9/data/{name}.jsonl")
    assert found == ([f"results/own_9/data/{split}.images.json"] if split else [])


def test_a_split_that_the_dataset_lacks_is_an_error_of_the_plan():
    with pytest.raises(ConfigError, match=r"datasets\.shapes\.splits: no such split.*'test'"):
        load().source("shapes", "test")
