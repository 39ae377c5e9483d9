"""The configuration: validation, nearest names, types of values, and what the name of a run means."""

import copy
import os
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from coordexp.config import runs
from coordexp.config.schema import json_schema
from coordexp.config.sections import SPLIT, WorkflowConfig
from coordexp.config.settings import Settings, over_defaults
from coordexp.inference.options import CalibrateOptions
from coordexp.runtime.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
PIXEL = {"coord_tokens": {"skip_bbox_norm": False}}
FULL_TINY = "config/train/full_tiny.yaml"


def load(change=None):
    config = copy.deepcopy(CONFIG)
    if change:
        change(config)
    return Settings.load(config, REPOSITORY)


def with_runs(**entries):
    return load(lambda c: c["runs"].update(entries))


def test_the_shipped_configuration_is_valid():
    settings = load()
    assert set(settings.datasets) >= {"shapes", "crowds", "lvis", "coco", "photos", "photos_overfit"}
    for name in settings.runs.entries:
        settings.recipe(f"{name}_9" if name in settings.datasets else name)


def test_the_shipped_values_are_the_defaults_of_the_library():
    """So that config.yaml, which repeats them with a comment each, cannot drift from the types."""
    defaults = msgspec.to_builtins(WorkflowConfig())
    for section in ("plugins", "data", "vocab", "train", "predict", "calibrate", "evaluate", "report", "sweeps"):
        value = CONFIG[section]
        shipped = {key: defaults[section][key] for key in value} if isinstance(value, dict) else defaults[section]
        assert msgspec.json.encode(value) == msgspec.json.encode(shipped), section


def test_the_shipped_configuration_names_no_path_outside_the_repository():
    def texts(node):
        if isinstance(node, dict):
            node = list(node.values())
        return [t for inner in node for t in texts(inner)] if isinstance(node, list) else [str(node)]

    assert [text for text in texts(CONFIG) if text.startswith(("..", "/", "~"))] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["data"].update(tinny=3), "data.tinny: unknown key, did you mean 'tiny'"),
        (lambda c: c["predict"].update(decoder="x"), "predict.decoder: unknown key, did you mean 'decode'"),
        (
            lambda c: c["predict"].update(decode="locl"),
            "predict.decode: unknown decoding mode 'locl', did you mean 'local'",
        ),
        (lambda c: c.update(modells={}), "modells: unknown key, did you mean 'models'"),
        (lambda c: c["data"].update(tiny="many"), "data.tiny: expected `int`"),
        (lambda c: c["data"].update(tiny=0), "data.tiny: expected `int` >= 1; found 0"),
        (lambda c: c["data"].update(splits=["train_rest"]), r"data.splits\[0\]: expected"),
        (lambda c: c["data"].update(roles={"vall": "x"}), "data.roles.vall: unknown key, did you mean 'val'"),
        (lambda c: c["data"].update(roles={"val": "a/b"}), "data.roles.val: expected"),
        (lambda c: c["predict"].update(split="a b"), "predict.split: expected"),
        (lambda c: c["datasets"]["lvis"].update(rot="x"), "datasets.lvis.rot: unknown key, did you mean 'root'"),
        (lambda c: c["datasets"]["shapes"].update(sizes=1), "datasets.shapes.sizes: unknown key, did you mean 'size'"),
        (
            lambda c: c["datasets"]["shapes"]["splits"]["train"].update(sed=3),
            "datasets.shapes.splits.train.sed: unknown key, did you mean 'seed'",
        ),
        (lambda c: c["datasets"].update(x={"root": "a"}), "datasets.x.format: required key is missing"),
        (lambda c: c["models"]["tiny"].update(hiden=3), "models.tiny.hiden: unknown key, did you mean 'hidden'"),
        (lambda c: c["models"].update(x={"source": "hff"}), "models.x.source: unknown source 'hff', did you mean 'hf'"),
        (lambda c: c["models"].update(x={"source": "hf"}), "models.x.repo: required key is missing"),
        (lambda c: c["models"].update(x={"source": "run", "run": "nothing"}), "models.x.run: unknown run 'nothing'"),
        (lambda c: c["calibrate"].update(method="logistic"), "calibrate.images: no images to fit the calibration on"),
        (
            lambda c: c.update(sweeps={"a": {"run": "lora", "axis": {}}}),
            "sweeps.a.axis: unknown key, did you mean 'axes'",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        load(change)


def test_all_mistakes_are_reported_at_once():
    def change(config):
        config["data"]["tinny"] = 3
        config["runs"]["lora"]["predict"] = {"decode": "locl", "shards": 0}

    with pytest.raises(ConfigError) as error:
        load(change)
    keys = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert keys == ["data.tinny", "runs.lora.predict.decode", "runs.lora.predict.shards"]


def test_text_from_the_command_line_gets_its_type():
    settings = load(lambda c: c["data"].update(tiny="64", keep_empty="false", num_workers="null", poly_min_iou="0.5"))
    data = settings.run("shapes_9").data
    assert (data.tiny, data.keep_empty, data.num_workers, data.poly_min_iou) == (64, False, None, 0.5)


def test_a_run_s_name_is_data_set_and_budget():
    run = load().run("lvis_768")
    assert (run.dataset, run.max_blocks, run.model) == ("lvis", 768, "Qwen3-VL-4B-Instruct")
    assert run.records == run.checkpoint == run.calibration_split == "lvis_768"


def test_the_run_s_own_entry_wins_over_that_of_its_data_set():
    settings = with_runs(shapes_16={"recipe": {"training": {"max_steps": 3}}, "train": {"threads": 2}})
    assert settings.recipe("shapes_16").training["max_steps"] == 3
    assert settings.recipe("shapes_9").training["max_steps"] != 3
    train = settings.run("shapes_16").train
    assert (train.threads, train.processes, train.nodes) == (2, 2, 1)


OVERRIDES = {
    "data": {"resize": "shrink", "jpeg_quality": "90"},
    "vocab": {"init": "mean"},
    "train": {"threads": 3},
    "predict": {"decode": "argmax", "shards": 4, "split": "val_tiny"},
    "calibrate": {"images": 7, "method": "isotonic"},
    "evaluate": {"bootstrap": 0, "max_dets": {"lvis": 10}},
    "report": {"gallery": 2},
}


@pytest.mark.parametrize("name", ["shapes", "shapes_9", "mine"])
def test_a_run_overrides_every_section(name):
    entry = {**OVERRIDES, **({"extends": "shapes_9"} if name == "mine" else {})}
    settings = with_runs(**{name: {**CONFIG["runs"].get(name, {}), **entry}})
    run, other = settings.run("mine" if name == "mine" else "shapes_9"), settings.run("crowds_9")
    assert (run.data.resize, run.data.jpeg_quality, run.data.factor) == ("shrink", 90, 32)
    assert (run.predict.decode, run.predict.shards, run.predict.split) == ("argmax", 4, "val_tiny")
    assert (run.calibrate.images, run.calibrate.method) == (7, "isotonic")
    assert (run.evaluate.bootstrap, run.evaluate.max_dets.lvis, run.evaluate.max_dets.coco) == (0, 10, 100)
    assert (run.report.gallery, run.train.threads) == (2, 3)
    assert settings.base(run.name) == "results/models/tiny-coordexp-mean"
    assert (other.data.resize, other.predict.decode, other.calibrate.images) == ("fill", "local", 0)
    assert settings.base("crowds_9") == "results/models/tiny-coordexp"


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("data", {"resiz": "fill"}, "runs.lora.data.resiz: unknown key, did you mean 'resize'"),
        ("data", {"output_base": "x"}, "runs.lora.data.output_base: unknown key"),
        ("vocab", {"init": "random"}, "runs.lora.vocab.init: unknown value 'random'"),
        ("train", {"processes": 0}, "runs.lora.train.processes: expected `int` >= 1"),
        ("predict", {"decode": "locl"}, "runs.lora.predict.decode: unknown decoding mode 'locl'"),
        (
            "calibrate",
            {"method": "isotonc"},
            "runs.lora.calibrate.method: unknown value 'isotonc', did you mean 'isotonic'",
        ),
        ("evaluate", {"max_dets": {"lvs": 1}}, "runs.lora.evaluate.max_dets.lvs: unknown key, did you mean 'lvis'"),
        ("report", {"galery": 1}, "runs.lora.report.galery: unknown key, did you mean 'gallery'"),
        ("recipe", {"trainin": {}}, "runs.lora.recipe.trainin: unknown key, did you mean 'training'"),
        ("recipe", {"custom": {"emit_nrm": "x"}}, "runs.lora.recipe.custom.emit_nrm: unknown key"),
        ("recipe", {"training": {"load_best_model_at_end": True}}, "runs.lora.recipe: training.load_best_model_at_end"),
        ("model", "tinny", "runs.lora.model: unknown model 'tinny', did you mean 'tiny'"),
    ],
)
def test_overrides_are_validated_like_the_defaults(section, value, message):
    with pytest.raises(ConfigError, match=message):
        load(lambda c: c["runs"]["lora"].update({section: value}))


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


def test_a_run_inherits_the_settings_of_the_run_whose_records_it_reads():
    def change(config):
        config["runs"]["lvis_768"] = {"train": {"processes": 4}, "recipe": {"training": {"max_steps": 3, "seed": 5}}}
        config["runs"]["lora"] = {"records_from": "lvis_768", "recipe": {"training": {"seed": 6}}}
        config["runs"]["tiny-base_2"] = {"records_from": "lora", "model": "tiny"}

    settings = load(change)
    run, other = settings.run("lora"), settings.run("tiny-base_2")
    assert (run.name, run.records, run.dataset, run.max_blocks) == ("lora", "lvis_768", "lvis", 768)
    assert (run.model, run.train.processes) == ("Qwen3-VL-4B-Instruct", 4)
    assert run.recipe == {"extends": "config/train/sft_coord_offset.yaml", "training": {"max_steps": 3, "seed": 6}}
    assert (other.model, other.records, other.checkpoint) == ("tiny", "lvis_768", "tiny-base_2")
    assert settings.records("lora", "val") == "results/lvis_768/data/val.jsonl"
    assert settings.trained_on("lora", "train") == "results/lvis_768/data/train.coord.jsonl"
    assert settings.images("results/lora/data/calibration.jsonl") == ["results/lvis_768/data/train.images.json"]


def test_a_run_that_extends_another_has_records_of_its_own():
    settings = with_runs(big={"extends": "lora", "max_blocks": 1024, "data": {"resize": "shrink"}})
    run = settings.run("big")
    assert (run.records, run.dataset, run.max_blocks, run.data.resize) == ("big", "lvis", 1024, "shrink")
    assert settings.trained_on("big", "train") == "results/big/data/train.coord.jsonl"
    assert run.recipe == {"extends": "config/train/sft_base.yaml"}


def test_settings_and_records_may_come_from_two_runs():
    settings = with_runs(
        big={"extends": "lvis_1024", "data": {"resize": "shrink"}}, both={"extends": "lora", "records_from": "big"}
    )
    run = settings.run("both")
    assert (run.records, run.max_blocks, run.data.resize) == ("big", 1024, "shrink")
    assert run.recipe == {"extends": "config/train/sft_base.yaml"}


def test_a_run_may_use_the_checkpoint_of_another():
    settings = with_runs(
        lora={"records_from": "lvis_768", "recipe": "config/train/sft_base.yaml", "calibrate": {"images": 9}},
        argmax={"checkpoint_from": "lora", "predict": {"decode": "argmax"}, "calibrate": {"method": "isotonic"}},
    )
    run = settings.run("argmax")
    assert (run.records, run.checkpoint, run.calibration_split) == ("lvis_768", "lora", "lora")
    assert settings.merged("argmax") == "results/lora/merged"
    assert settings.training("argmax") == "results/lora/train"
    assert settings.prediction("argmax")["options"]["decode"] == "argmax"
    assert settings.records("argmax", "calibration") == "results/lora/data/calibration.jsonl"


def test_another_number_of_calibration_images_is_another_split_of_the_same_records():
    settings = with_runs(
        lvis={**CONFIG["runs"]["lvis"], "calibrate": {"images": 9}},
        same={"records_from": "lvis_768"},
        other={"records_from": "lvis_768", "calibrate": {"images": 5}},
    )
    assert settings.trained_on("same", "train") == "results/lvis_768/data/train_rest.coord.jsonl"
    assert settings.trained_on("other", "train") == "results/other/data/train_rest.coord.jsonl"
    assert settings.records("other", "val") == "results/lvis_768/data/val.jsonl"


def test_a_seed_in_the_name_reaches_recipe_and_random_weights():
    settings = load()
    run = settings.run("shapes_9-seed3")
    assert (run.records, run.model) == ("shapes_9", "tiny-seed3")
    assert settings.runs.model("tiny-seed3") == {"source": "tiny", "seed": 3}
    training = settings.recipe("shapes_9-seed3").training
    assert (training["seed"], training["data_seed"]) == (3, 3)
    assert settings.run("lora-seed3").model == "Qwen3-VL-4B-Instruct"


def test_a_base_may_be_the_checkpoint_of_a_run():
    def change(config):
        config["runs"]["taught"] = {"records_from": "shapes_9", "vocab": {"init": "none"}, "recipe": {"custom": plain}}
        config["models"]["taught"] = {"source": "run", "run": "taught"}
        config["runs"]["then"] = {"extends": "crowds_9", "model": "taught"}

    plain = {"coord_tokens": {"enabled": False}}
    settings = load(change)
    assert settings.base("taught") == "resources/models/tiny"
    assert settings.base("then") == "results/models/taught-coordexp"
    assert settings.fetched("taught") == "results/taught/merged"
    assert settings.size("then", small=1, large=2) == 1
    assert settings.fetched("taught-seed4") == "results/taught-seed4/merged"
    plain["coord_tokens"]["enabled"] = True
    with pytest.raises(ConfigError, match=r"runs\.taught\.vocab.init: the base has no coordinate tokens"):
        load(change).base("taught")


def test_models_of_runs_must_not_be_circular():
    def change(config):
        config["models"] |= {"a": {"source": "run", "run": "x"}, "b": {"source": "run", "run": "y"}}
        config["runs"] |= {"x": {"extends": "shapes_9", "model": "b"}, "y": {"extends": "shapes_9", "model": "a"}}

    with pytest.raises(ConfigError, match="circular models of source `run`: x -> y -> x"):
        load(change)


SWEEP = {
    "run": "shapes_9",
    "axes": {
        "lr": {"low": {"recipe": {"training": {"learning_rate": 1e-4}}}, "high": {}},
        "predict.decode": ["local", "argmax"],
    },
    "seeds": [1, 2],
}


def test_a_trial_of_a_sweep_is_a_run():
    settings = load(lambda c: c.update(sweeps={"rates": SWEEP, "weights": {**SWEEP, "seed_weights": True}}))
    run = settings.run("sweeps/rates/low_local-seed2")
    assert (run.records, run.checkpoint, run.model) == ("shapes_9", "sweeps/rates/low_local-seed2", "tiny")
    training = settings.recipe(run.name).training
    assert (training["learning_rate"], training["seed"]) == (1e-4, 2)
    other = settings.run("sweeps/rates/low_argmax-seed2")
    assert (other.checkpoint, other.predict.decode) == ("sweeps/rates/low_local-seed2", "argmax")
    assert settings.run("sweeps/weights/low_local-seed2").model == "tiny-seed2"
    assert re.fullmatch(f"{runs.PATTERN}/eval.json", f"{run.name}/eval.json")
    with pytest.raises(ConfigError, match="unknown trial, did you mean 'sweeps/rates/low_local-seed2'"):
        settings.run("sweeps/rates/low_local-seed4")


def test_trials_that_share_a_training_have_only_their_own_options():
    axes = {
        "scores": {"calibrated": {"calibrate": {"method": "logistic"}}, "raw": {}},
        "answers": {
            "argmax": {"predict": {"decode": "argmax"}},
            "prompted": {"predict": {"protocol": "all_categories"}},
        },
    }
    entry = {"run": "base", "axes": axes}
    base = {"records_from": "shapes_9", "calibrate": {"images": 5}, "predict": {"chunk": 7}}
    settings = load(lambda c: (c["runs"].update(base=base), c.update(sweeps={"s": entry})))
    run = settings.run("sweeps/s/raw_prompted-seed1")
    assert run.checkpoint == "sweeps/s/calibrated_argmax-seed1"
    assert run.calibrate == CalibrateOptions(images=5)
    assert (run.predict.decode, run.predict.protocol, run.predict.chunk) == ("local", "all_categories", 7)


def test_a_section_of_a_trial_may_be_empty():
    axes = {"scores": {"empty": {"calibrate": None}}}
    settings = load(lambda c: c.update(sweeps={"s": {"run": "shapes_9", "axes": axes}}))
    assert settings.run("sweeps/s/empty-seed1").calibrate == CalibrateOptions()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"scores": {"wrong": {"calibrate": 3}}}}, r"sweeps.s \(wrong\).calibrate: expected `object \| null`"),
        ({"axes": {"x": {"a": {"predict": {"decod": "local"}}}}}, r"sweeps.s \(a\).predict.decod: unknown key"),
        ({"run": "shaps_9"}, "sweeps.s.run: unknown data ?set 'shaps'"),
        ({"baseline": {"y": "a"}}, "sweeps.s.baseline: unknown axis 'y'"),
    ],
)
def test_sweeps_are_checked_when_the_configuration_is_loaded(changes, message):
    entry = {"run": "shapes_9", "axes": {"x": {"a": {}}}} | changes
    with pytest.raises(ConfigError, match=message):
        load(lambda c: c.update(sweeps={"s": entry}))


def test_trials_with_other_data_options_share_records_over_seeds():
    axes = {"resize": {"fill": {}, "shrink": {"data": {"resize": "shrink"}}}, "predict.decode": ["local", "argmax"]}
    settings = load(lambda c: c.update(sweeps={"s": {"run": "shapes_9", "axes": axes, "seeds": [1, 2]}}))
    first = "sweeps/s/shrink_local-seed1"
    for name in ("shrink_local-seed1", "shrink_local-seed2", "shrink_argmax-seed2"):
        run = settings.run(f"sweeps/s/{name}")
        assert (run.records, run.data.resize, run.dataset) == (first, "shrink", "shapes")
    assert settings.run("sweeps/s/fill_local-seed2").records == "shapes_9"


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("a+b", {"extends": "lvis_768"}, "runs.a.b: invalid name of a run; expected 'letters"),
        ("a/b", {"extends": "lvis_768"}, "runs.a/b: invalid name of a run"),
        ("compare", {"extends": "lvis_768"}, "runs.compare: a reserved folder has this name"),
        ("sweeps", {"extends": "lvis_768"}, "runs.sweeps: a reserved folder has this name"),
        ("lvis", {"records_from": "coco_768"}, "runs.lvis.records_from: has no effect: lvis is the name of a dataset"),
        ("lvis_1024", {"extends": "lvis_768"}, "runs.lvis_1024.extends: has no effect"),
        ("lvis_1024", {"max_blocks": 3}, "runs.lvis_1024.max_blocks: has no effect"),
        ("other", {"extends": "lviss_768"}, "runs.other.extends: unknown dataset 'lviss', did you mean 'lvis'"),
        ("other", {"records_from": "lvis"}, "runs.other.records_from: unknown run 'lvis'"),
        ("other", {"extends": "other"}, "circular runs: other -> other"),
        ("other", {"recipe": "config/train/sft_base.yaml"}, "runs.other: unknown run 'other'.*\n.*names a parent"),
        ("lviss_768", {"train": {"processes": 2}}, "runs.lviss_768: unknown dataset 'lviss', did you mean 'lvis'"),
        (
            "other",
            {"records_from": "lora", "data": {"desc": "raw"}},
            "runs.other.data: has no effect together with `records_from`",
        ),
        ("other", {"records_from": "lora", "max_blocks": 9}, "runs.other.max_blocks: has no effect together with"),
        (
            "other",
            {"checkpoint_from": "lora", "model": "tiny"},
            "runs.other.model: has no effect together with `checkpoint_from`",
        ),
        ("other", {"checkpoint_from": "lora", "recipe": {}}, None),
        ("other", {"checkpoint_from": "lora", "extends": "lora"}, "runs.other.checkpoint_from: excludes `extends`"),
        (
            "other",
            {"checkpoint_from": "lora", "calibrate": {"images": 3}},
            "runs.other.calibrate.images: is decided by",
        ),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(name, entry, message):
    if message is None:
        assert load(lambda c: c["runs"].update({name: entry})).run(name).checkpoint == "lora"
        return
    with pytest.raises(ConfigError, match=message):
        load(lambda c: c["runs"].update({name: entry}))


def test_tokens_of_another_codec_are_not_trained_on():
    legacy = {"custom": {"emit_norm": "norm1000_legacy"}}
    with pytest.raises(ConfigError, match="the tokens of lvis_768 were made with another codec"):
        load(lambda c: c["runs"]["lora"].update(recipe=legacy)).trained_on("lora", "train")
    both = with_runs(
        lvis={**CONFIG["runs"]["lvis"], "recipe": {"extends": "config/train/sft_coord_offset.yaml", **legacy}},
        lora={"records_from": "lvis_768"},
    )
    assert both.trained_on("lora", "train") == "results/lvis_768/data/train.coord.jsonl"


def test_names_of_runs_in_a_path_are_not_those_of_the_folders_beside_them():
    for name in ("lvis_768", "lora", "loora", "models_2", "sweeps/a/b.5=x-seed3"):
        assert re.fullmatch(f"{runs.PATTERN}/eval.json", f"{name}/eval.json")
    for name in ("models", "compare", "sweeps", "sweeps/a", "logs", "benchmarks", "a+b", "a/b"):
        assert not re.fullmatch(f"{runs.PATTERN}/eval.json", f"{name}/eval.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lviss_768", "did you mean 'lvis'"),
        ("nothing_like_it_9", "unknown dataset"),
        ("lorra", "lorra: unknown run 'lorra', did you mean 'lora'"),
        ("lvis", "unknown run 'lvis';"),
        ("lvis_big", "unknown run 'lvis_big'"),
        ("lvis_0768", "unknown run"),
    ],
)
def test_unknown_runs_are_named(name, message):
    with pytest.raises(ConfigError, match=message):
        load().run(name)


def test_the_generated_schema_accepts_the_configuration_and_refuses_mistakes():
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(CONFIG)) == []
    for change in ({"predict": {"decode": "locl"}}, {"predict": {"decoder": "local"}}, {"datasets": {"a": {}}}):
        assert list(validator.iter_errors(change)) != []


def test_every_key_of_the_schema_has_a_description():
    definitions = json_schema()["$defs"]
    missing = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, node in definition.get("properties", {}).items()
        if not (node.get("description") or any(part.get("description") for part in node.get("anyOf", ())))
    ]
    assert missing == []


def test_changes_are_merged_over_the_defaults():
    settings = Settings.load(over_defaults({"data": {"tiny": 7}}, REPOSITORY), REPOSITORY)
    assert (settings.data.tiny, settings.data.factor) == (7, CONFIG["data"]["factor"])


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


PHOTOS = {
    "format": "coco",
    "annotations": dict.fromkeys(("trainval", "dev", "test-std", "test"), "a.json"),
    "image_dirs": {split: ["images"] for split in ("trainval", "dev", "test-std", "test")},
}
ROLES = {"train": "trainval", "val": "dev", "test": "test-std"}


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


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("train", True),
        ("test-dev_2017", True),
        ("2017", True),
        ("calibration2", True),
        ("calibration", False),
        ("val_tiny", False),
        ("train_rest", False),
        ("a.coord", False),
        ("a/b", False),
    ],
)
def test_no_split_is_named_like_a_file_that_is_made_from_one(name, valid):
    assert bool(re.fullmatch(SPLIT, name)) is valid
