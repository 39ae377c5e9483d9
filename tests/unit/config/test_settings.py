"""The configuration: every key known, typos answered, types kept, run names understood."""

import copy
import os
import re
from pathlib import Path

import pytest
import yaml

from coordexp.config import runs
from coordexp.config.settings import SCHEMA, Settings, over_defaults
from coordexp.config.sweeps import Ablation
from coordexp.runtime.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]


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
        (lambda c: c["calibrate"].update(method="logistic"), "calibrate.calibration.*nothing to calibrate on"),
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


def test_records_of_the_workflow_name_what_says_how_their_images_were_made():
    settings = load(lambda c: c)
    records = [settings.records("lvis_768", name) for name in ("train_rest.coord", "calibration", "val_tiny", "train")]
    train, val = (f"results/lvis_768/data/{split}.images.json" for split in ("train", "val"))
    assert settings.images(*records, "own/val.jsonl") == [train, val]
    assert settings.images("results/other_4/data/val.coord.jsonl") == ["results/other_4/data/val.images.json"]
    assert settings.images("results/lvis_768/eval/predictions.jsonl") == []


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
    assert settings.mixture("shapes_9", tables=False)[1:] == records  # what calibration images must not be in


def test_a_named_run_takes_what_it_does_not_say_from_the_run_whose_records_it_reads():
    def change(config):
        config["runs"]["lvis_768"] = {"processes": 4, "training": {"max_steps": 3, "seed": 5}}
        config["runs"]["lora"]["training"] = {"seed": 6}
        config["runs"]["tiny-base_2"] = {"data": "lvis_768", "model": "tiny"}

    settings = load(change)
    run, other = settings.run("lora"), settings.run("tiny-base_2")
    assert (run.name, run.data, run.dataset, run.max_blocks) == ("lora", "lvis_768", "lvis", 768)
    assert (run.model, run.recipe, run.processes) == ("Qwen3-VL-4B-Instruct", "config/train/sft_base.yaml", 4)
    assert run.overrides == {"training": {"max_steps": 3, "seed": 6}}
    assert (other.model, other.recipe) == ("tiny", "config/train/sft_coord_offset.yaml")
    assert settings.records("lora", "val") == "results/lvis_768/data/val.jsonl"
    assert settings.trained_on("lora", "train") == "results/lvis_768/data/train.coord.jsonl"
    assert settings.run("lvis_768").data == "lvis_768"


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("a+b", {"data": "lvis_768"}, "runs.a.b: not a name of a run; expected 'letters"),
        ("a/b", {"data": "lvis_768"}, "runs.a/b: not a name of a run"),
        ("compare", {"data": "lvis_768"}, "runs.compare: a folder of this name"),
        ("models", {"data": "lvis_768"}, "runs.models: a folder of this name"),
        ("lvis", {"data": "coco_768"}, "runs.lvis: is the name of a data set"),
        ("lvis_1024", {"data": "lvis_768"}, "runs.lvis_1024: is the name of a data set or of its run"),
        ("other", {"data": "lviss_768"}, "runs.other.data: unknown data set 'lviss', did you mean 'lvis'"),
        ("other", {"data": "lvis"}, "runs.other.data: unknown run 'lvis'"),
        ("other", {"data": "lora"}, "runs.other.data: reads the records of a run without any.*\n.*{max_blocks}"),
        ("other", {"data": "other"}, "runs.other.data: reads the records of a run without any"),
        ("other", {"recipe": "config/train/sft_base.yaml"}, "runs.other: unknown run 'other'.*\n.*whose records"),
        ("lviss_768", {"processes": 2}, "runs.lviss_768: unknown data set 'lviss', did you mean 'lvis'"),
    ],
)
def test_an_entry_that_stands_for_no_run_is_refused(name, entry, message):
    with pytest.raises(ConfigError, match=message):
        load(lambda c: c["runs"].update({name: entry}))


def test_tokens_of_another_codec_are_not_trained_on():
    def change(config):
        config["runs"]["lora"]["custom"] = {"emit_norm": "norm1000_legacy"}

    with pytest.raises(ConfigError, match="tokens of lvis_768 are of another codec"):
        load(change).trained_on("lora", "train")
    legacy = load(lambda c: c["runs"].update(lvis={**c["runs"]["lvis"], "custom": {"emit_norm": "norm1000_legacy"}}))
    assert legacy.trained_on("lora", "train") == "results/lvis_768/data/train.coord.jsonl"


def test_names_of_runs_in_a_path_are_not_those_of_the_folders_beside_them():
    config = load().config
    for name in ("lvis_768", "lora", "loora", "models_2"):
        assert re.fullmatch(f"{runs.PATTERN}/eval.json", f"{name}/eval.json")
    for name in ("models", "compare", "ablation", "logs", "benchmarks", "a+b", "a/b"):
        assert not re.fullmatch(f"{runs.PATTERN}/eval.json", f"{name}/eval.json")
    config["runs"]["lvis_lora_768"] = {"data": "lvis_768"}
    with_records = [n for n in ("lvis_768", "lora", "lvis_lora_768") if re.match(f"{runs.prepared(config)}/", f"{n}/")]
    assert with_records == ["lvis_768"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lviss_768", "did you mean 'lvis'"),
        ("nothing_like_it_9", "unknown data set"),
        ("lorra", "lorra: unknown run 'lorra', did you mean 'lora'"),
        ("lvis", "unknown run 'lvis';"),
        ("lvis_big", "unknown run 'lvis_big'"),
        ("lvis_0768", "unknown run"),
    ],
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
    ("custom", "calibration", "train", "val"),
    [
        ({}, 0, "results/shapes_9/data/train.coord.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        ({}, 5, "results/shapes_9/data/train_rest.coord.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        (PIXEL, 0, "results/shapes_9/data/train.jsonl", "results/shapes_9/data/val_tiny.jsonl"),
        (PIXEL, 5, "results/shapes_9/data/train_rest.jsonl", "results/shapes_9/data/val_tiny.jsonl"),
        ({"train_jsonl": "own.jsonl"}, 5, "own.jsonl", "results/shapes_9/data/val_tiny.coord.jsonl"),
        (PIXEL | {"val_jsonl": "own.jsonl"}, 5, "results/shapes_9/data/train_rest.jsonl", "own.jsonl"),
    ],
)
def test_training_reads_the_recipe_s_own_file_or_the_run_s_in_its_space(custom, calibration, train, val):
    settings = load(
        lambda c: (c["runs"].update(shapes_9={"custom": custom}), c["calibrate"].update(calibration=calibration))
    )
    assert [settings.trained_on("shapes_9", split) for split in ("train", "val")] == [train, val]


def test_an_arm_of_the_ablation_reads_the_file_of_its_own_recipe():
    settings = load(lambda c: c["ablation"]["overrides"]["scratch"]["custom"].update(PIXEL))
    ablation = Ablation(settings.config["ablation"], REPOSITORY)
    files = [settings.trained_on("shapes_9", "train", ablation.recipe("tokens", s)) for s in ("base", "scratch")]
    assert files == ["results/shapes_9/data/train.coord.jsonl", "results/shapes_9/data/train.jsonl"]
