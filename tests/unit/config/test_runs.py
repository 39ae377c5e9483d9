"""Runs: names, entries, inheritance between runs, trials of sweeps."""

import re

import pytest
from config_cases import CONFIG, load, with_runs

from coordexp.config import runs
from coordexp.inference.options import CalibrateOptions
from coordexp.runtime.errors import ConfigError


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


def test_a_run_inherits_the_settings_of_the_run_whose_records_it_reads():
    def change(config):
        config["runs"]["lvis_768"] = {"train": {"processes": 4}, "recipe": {"training": {"max_steps": 3, "seed": 5}}}
        config["runs"]["lora"] = {"records_from": "lvis_768", "recipe": {"training": {"seed": 6}}}
        config["runs"]["tiny-base_2"] = {"records_from": "lora", "model": "tiny"}

    settings = load(change)
    run, other = settings.run("lora"), settings.run("tiny-base_2")
    assert (run.name, run.records, run.dataset, run.max_blocks) == ("lora", "lvis_768", "lvis", 768)
    assert (run.model, run.train.processes) == ("Qwen3-VL-4B-Instruct", 4)
    assert run.recipe == {"extends": "config/train/lvis.yaml", "training": {"max_steps": 3, "seed": 6}}
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


@pytest.mark.parametrize(
    ("predict", "slices", "field"),
    [
        ({}, {"score": "mean"}, r"calibrate\.method"),
        ({"protocol": "open", "chunk": 1}, {"category_grids": {"cup": [[2, 2]]}}, r"slices\.category_grids"),
        ({"protocol": "all_categories"}, {"category_grids": {"cup": [[2, 2]]}}, r"slices\.category_grids"),
    ],
)
def test_options_of_slices_without_effect_are_refused(predict, slices, field):
    calibrate = {"images": 9, "method": "logistic"}
    changes = {"predict": {**predict, "slices": {"grids": [[2, 2]], **slices}}, "calibrate": calibrate}
    with pytest.raises(ConfigError, match=rf"{field}(.|\n)*"):
        with_runs(lvis={**CONFIG["runs"]["lvis"], **changes}).run("lvis")


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
        ("a+b", {"extends": "lvis_768"}, "runs.a.b: invalid run name; expected 'letters"),
        ("a/b", {"extends": "lvis_768"}, "runs.a/b: invalid run name"),
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
        (
            "other",
            {"checkpoint_from": "lora", "extends": "lora"},
            "runs.other.checkpoint_from: cannot be combined with `extends`",
        ),
        (
            "other",
            {"checkpoint_from": "lora", "calibrate": {"images": 3}},
            "runs.other.calibrate.images: is determined by",
        ),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(name, entry, message):
    if message is None:
        assert load(lambda c: c["runs"].update({name: entry})).run(name).checkpoint == "lora"
        return
    with pytest.raises(ConfigError, match=message):
        load(lambda c: c["runs"].update({name: entry}))


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
