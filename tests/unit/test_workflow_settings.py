"""The configuration: every key known, typos answered, types kept, run names understood."""

import copy
import os
from pathlib import Path

import pytest
import yaml

from coordexp.errors import ConfigError
from coordexp.workflow import SCHEMA, Settings, over_defaults

REPOSITORY = Path(__file__).resolve().parents[2]


CONFIG = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())


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


def test_the_tables_of_a_mixture_are_files_that_training_waits_for(monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    text = "sources: {a: {jsonl: a.jsonl, categories: a.source.json}, b: {jsonl: b.jsonl}}"
    (tmp_path / "mix.yaml").write_text(text)
    mixed = {"custom": {"fusion_config": str(tmp_path / "mix.yaml")}}
    settings = load(lambda c: c["runs"].update({"shapes_9": mixed}))
    *records, table = (os.path.relpath(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "a.source.json"))
    assert settings.mixture("shapes_9")[1:] == [*records, table]
    assert settings.mixture("shapes_9", tables=False)[1:] == records  # what held-out pictures must not be in


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


def test_training_leaves_the_held_out_pictures_out():
    assert load().training_file == "train.coord.jsonl"
    assert load(lambda c: c["calibrate"].update(held_out=500)).training_file == "train_rest.coord.jsonl"
