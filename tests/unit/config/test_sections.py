"""The sections of the configuration: defaults, validation, nearest names, and overrides per run."""

import re

import msgspec
import pytest
from config_cases import CONFIG, load, with_runs

from coordexp.config.sections import SPLIT, WorkflowConfig
from coordexp.runtime.errors import ConfigError


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
