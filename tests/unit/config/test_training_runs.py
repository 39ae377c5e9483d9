"""Which finished training runs are kept: by configuration and user files, not by code."""

from pathlib import Path

import pytest

from coordexp.config import training_runs
from coordexp.config.settings import Settings, over_defaults
from coordexp.config.training_runs import LOG, MANIFEST, differences, finished_runs, kept, kept_bases, made_from
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.io import write_json

ROOT = Path(__file__).resolve().parents[3]
MODULES = ["coordexp.losses.criterion"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COORDEXP_PLUGINS", raising=False)


def settings(**changes):
    return Settings.load(over_defaults(changes, ROOT), ROOT)


def publish(run="shapes_9", code=None, **changes):
    """A finished training of `run` under `changes` of the configuration."""
    trained_with = {"coordexp": "0.0.9", "code": code or code_identity(*MODULES), "modules": MODULES}
    write_json(Path("results", run, MANIFEST), {"made_from": made_from(settings(**changes), run), "code": trained_with})
    Path("results", run, LOG).touch()


def test_a_finished_training_is_kept_whatever_the_code():
    publish(code="0" * 16)
    found = finished_runs(settings())
    assert kept(settings(), found, []) == ["shapes_9"]
    [line] = differences(settings(), found)
    reported = "shapes_9: trained with a different version of the code (coordexp 0.0.9, 0000000000000000)"
    assert line.startswith(reported) and "kept" in line


def test_other_code_is_not_kept_on_request():
    strict = settings(train={"rerun_on_code_change": True})
    publish()
    assert kept(strict, finished_runs(strict), []) == ["shapes_9"]
    assert differences(strict, finished_runs(strict)) == []
    publish(code="0" * 16)
    assert kept(strict, finished_runs(strict), []) == []
    assert "retrained because" in differences(strict, finished_runs(strict))[0]


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"jpeg_quality": 50}},
        {"data": {"tiny": 3}},
        {"runs": {"shapes": {"train": {"processes": 1}}}},
        {"vocab": {"init": "mean"}},
        {"models": {"tiny": {"seed": 99}}},
        {"datasets": {"shapes": {"image_size": 64}}},
        {"calibrate": {"images": 7}},
        {"runs": {"shapes": {"recipe": {"training": {"learning_rate": 1e-6}}}}},
        {"runs": {"shapes": {"recipe": {"custom": {"loss": {"weights": {"l1": 0.25}}}}}}},
    ],
)
def test_other_options_of_training_or_of_a_stage_before_it_train_again(change):
    publish()
    assert finished_runs(settings(**change)) == []


@pytest.mark.parametrize(
    "change", [{"predict": {"batch_size": 3}}, {"evaluate": {"bootstrap": 3}}, {"data": {"num_workers": 3}}]
)
def test_options_of_later_stages_and_of_speed_do_not(change):
    publish()
    assert [training.run for training in finished_runs(settings(**change))] == ["shapes_9"]


def test_the_content_of_the_user_s_own_records_counts():
    Path("own.jsonl").write_text("{}\n")
    own = {"runs": {"shapes": {"recipe": {"custom": {"train_jsonl": "own.jsonl"}}}}}
    publish(**own)
    assert len(finished_runs(settings(**own))) == 1
    Path("own.jsonl").write_text("{}\n{}\n")
    assert finished_runs(settings(**own)) == []


def test_a_mixture_counts_with_the_files_that_it_names():
    Path("own.jsonl").write_text("{}\n")
    Path("mixture.yaml").write_text("sources: {a: {jsonl: own.jsonl}, b: {jsonl: results/shapes_9/data/train.jsonl}}")
    mixed = {"runs": {"shapes": {"recipe": {"custom": {"fusion_config": str(Path("mixture.yaml").resolve())}}}}}
    before = made_from(settings(**mixed), "shapes_9")
    assert made_from(settings(**mixed), "shapes_9") == before
    Path("own.jsonl").write_text("{}\n{}\n")
    assert made_from(settings(**mixed), "shapes_9") != before


def test_an_option_that_is_written_out_at_its_default_changes_nothing():
    assert made_from(settings(data={"factor": 32}), "shapes_9") == made_from(settings(), "shapes_9")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["snakemake", "-n", "results/shapes_9/eval.json"], ["shapes_9"]),
        (["snakemake", "-R", "predict", "--", "results/shapes_9/eval.json"], ["shapes_9"]),
        (["snakemake", "-R", "train"], []),
        (["snakemake", "--forcerun=train"], []),
        (["snakemake", "--forceall"], []),
        (["snakemake", f"results/shapes_9/{MANIFEST}"], []),
        (["snakemake", f"./results/shapes_9/{LOG}"], []),
    ],
)
def test_a_command_line_may_ask_for_the_rule(arguments, expected):
    publish()
    assert kept(settings(), finished_runs(settings()), arguments) == expected


def test_the_base_of_a_kept_training_is_kept_while_it_is_complete():
    assert kept_bases(settings(), ["shapes_9"], []) == []
    for name in ("config.json", "coord_tokens.json"):
        write_json(Path("results/models/tiny-coordexp", name), {})
    assert kept_bases(settings(), ["shapes_9"], []) == ["tiny-coordexp"]
    assert kept_bases(settings(), ["shapes_9"], ["-R", "expand_vocab"]) == []


def test_folders_that_are_no_runs_and_damaged_manifests_are_ignored():
    publish()
    for run in ("unknown", "lvis_768"):
        path = Path("results", run, MANIFEST)
        path.parent.mkdir(parents=True)
        path.write_text("{")
    assert [training.run for training in finished_runs(settings())] == ["shapes_9"]
    assert training_runs.LOG == "train/log.jsonl"
