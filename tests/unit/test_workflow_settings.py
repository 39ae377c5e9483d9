"""The configuration: every key known, typos answered, types kept, run names understood."""

import copy
from pathlib import Path

import pytest
import yaml

from coordexp.ablation import Ablation
from coordexp.errors import ConfigError
from coordexp.workflow import SCHEMA, Settings, over_defaults

REPOSITORY = Path(__file__).resolve().parents[2]


CONFIG = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
PIXEL = {"coord_tokens": {"skip_bbox_norm": False}}


def load(change=None):
    config = copy.deepcopy(CONFIG)
    if change:
        change(config)
    return Settings.load(config, REPOSITORY)


def test_the_repository_s_own_configuration_is_sound():
    assert set(load().datasets) >= {"shapes", "crowds", "lvis", "coco", "photos", "photos_overfit"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["data"].update(tinny=3), "data.tinny: unknown key, did you mean 'tiny'"),
        (lambda c: c["predict"].update(decoder="x"), "predict.decoder: unknown key, did you mean 'decode'"),
        (lambda c: c.update(modells={}), "modells: unknown key, did you mean 'models'"),
        (lambda c: c["data"].update(tiny="many"), "data.tiny"),
        (lambda c: c["data"]["lvis"].update(layot="lvis"), "data.lvis.layot: unknown key, did you mean 'layout'"),
        (lambda c: c["calibrate"].update(method="logistic"), "calibrate.held_out.*nothing to calibrate on"),
        (lambda c: c.pop("vocab"), "'vocab' is a required property"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        load(change)


def test_text_from_the_command_line_gets_its_type():
    settings = load(lambda c: c["data"].update(tiny="64", keep_empty="false", num_workers="null", poly_min_iou="0.5"))
    assert [settings.data[k] for k in ("tiny", "keep_empty", "num_workers", "poly_min_iou")] == [64, False, None, 0.5]


def test_a_run_s_name_is_data_set_and_budget():
    run = load().run("lvis_768")
    assert (run.dataset, run.max_blocks, run.model) == ("lvis", 768, "Qwen3-VL-4B-Instruct")


def test_the_run_s_own_entry_wins():
    settings = load(lambda c: c["runs"].update({"shapes_16": {"training": {"max_steps": 3}}}))
    assert settings.recipe("shapes_16").training["max_steps"] == 3
    assert settings.recipe("shapes_9").training["max_steps"] != 3


@pytest.mark.parametrize(
    ("data", "predict", "kinds"),
    [
        ({}, {}, ["bbox_2d"]),
        ({"geometry": "poly"}, {}, ["bbox_2d", "poly"]),  # a polygon that simplifies badly is a box
        ({"geometry": "poly"}, {"geometry": ["poly"]}, ["poly"]),
    ],
)
def test_answers_may_hold_the_geometry_that_was_learnt(data, predict, kinds):
    settings = load(lambda c: (c["data"].update(data, poly_max_points=9), c["predict"].update(predict)))
    options = settings.answering(settings.recipe("shapes_9"))["options"]
    assert (options["geometry"], options["poly_max_points"]) == (kinds, 9)


def test_a_mixture_names_its_files_as_the_rules_do(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    mixed = {"custom": {"fusion_config": "config/fusion/shapes_twice.yaml"}}
    settings = load(lambda c: c["runs"].update({"shapes_9": mixed}))
    assert settings.mixture("shapes_16") == []
    assert settings.mixture("shapes_9") == [
        "config/fusion/shapes_twice.yaml",
        "results/shapes_9/data/train.coord.jsonl",
        "results/shapes_16/data/train.coord.jsonl",
    ]


@pytest.mark.parametrize(
    ("name", "message"), [("lviss_768", "did you mean 'lvis'"), ("nothing_like_it_9", "unknown data set")]
)
def test_unknown_runs_are_named(name, message):
    with pytest.raises(ConfigError, match=message):
        load().run(name)


def test_every_key_of_the_schema_has_a_description():
    schema = yaml.safe_load((REPOSITORY / SCHEMA).read_text())

    def undescribed(node, path):
        for name, inner in node.get("properties", {}).items():
            here = [*path, name]
            if "properties" in inner:
                yield from undescribed(inner, here)
            elif "description" not in inner and "$ref" not in inner:
                yield ".".join(here)

    assert list(undescribed(schema, [])) == []


def test_a_change_lies_over_the_defaults():
    settings = Settings.load(over_defaults({"data": {"tiny": 7}}, REPOSITORY), REPOSITORY)
    assert (settings.data["tiny"], settings.data["factor"]) == (7, CONFIG["data"]["factor"])


@pytest.mark.parametrize(
    ("custom", "held_out", "train", "val"),
    [
        ({}, 0, "results/shapes_9/data/train.coord.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        ({}, 5, "results/shapes_9/data/train_rest.coord.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        (PIXEL, 0, "results/shapes_9/data/train.jsonl", "results/shapes_9/data/val_tiny.jsonl"),
        (PIXEL, 5, "results/shapes_9/data/train_rest.jsonl", "results/shapes_9/data/val_tiny.jsonl"),
        ({"train_jsonl": "own.jsonl"}, 5, "own.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        (PIXEL | {"val_jsonl": "own.jsonl"}, 5, "results/shapes_9/data/train_rest.jsonl", "own.jsonl"),
    ],
)
def test_training_reads_the_recipe_s_own_file_or_the_run_s_in_its_space(custom, held_out, train, val):
    settings = load(lambda c: (c["runs"].update(shapes_9={"custom": custom}), c["calibrate"].update(held_out=held_out)))
    assert [settings.trained_on("shapes_9", split) for split in ("train", "val")] == [train, val]


def test_an_arm_of_the_ablation_reads_the_file_of_its_own_recipe():
    settings = load(lambda c: c["ablation"]["overrides"]["scratch"]["custom"].update(PIXEL))
    ablation = Ablation(settings.config["ablation"], REPOSITORY)
    files = [settings.trained_on("shapes_9", "train", ablation.recipe("tokens", s)) for s in ("base", "scratch")]
    assert files == ["results/shapes_9/data/train.coord.jsonl", "results/shapes_9/data/train.jsonl"]
