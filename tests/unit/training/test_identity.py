"""Which checkpoints a training continues from: by what is trained and by the code that trains it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from coordexp.recipe import load_recipe, parse_recipe
from coordexp.runtime import code_identity as identity
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.io import read_json
from coordexp.training.identity import (
    EVAL_MODULE,
    MODULES,
    record_code,
    recorded_code,
    select_checkpoints,
    training_code,
    training_key,
)

SOURCES = Path(__file__).resolve().parents[3] / "src"
KEY, OLD, NEW = "0" * 16, "a" * 16, "b" * 16


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    monkeypatch.delenv("COORDEXP_PLUGINS", raising=False)


@pytest.fixture
def trained_by(tmp_path):
    """Make the checkpoint folder of a training of `key` by `code`."""

    def make(code, key=KEY, finished=True):
        folder = tmp_path / f"{key}-{code}"
        folder.mkdir()
        record_code(folder, code, MODULES)
        if finished:
            (folder / "finished").touch()
        return folder

    return make


def select(folder, code=NEW, **options):
    return select_checkpoints(folder, KEY, code, lambda other: (other / "finished").exists(), **options).name


def test_the_first_training_starts_in_a_new_folder(tmp_path, capsys):
    assert select(tmp_path) == f"{KEY}-{NEW}"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_code_continues_or_publishes(trained_by, tmp_path, capsys, finished):
    trained_by(NEW, finished=finished)
    assert select(tmp_path) == f"{KEY}-{NEW}"
    assert capsys.readouterr().out == ""


def test_a_finished_training_is_published_whatever_the_code(trained_by, tmp_path, capsys):
    trained_by(OLD)
    assert select(tmp_path) == f"{KEY}-{OLD}"
    printed = capsys.readouterr().out
    assert OLD in printed and NEW in printed and "train.rerun_on_code_change: true" in printed


def test_a_finished_training_of_other_code_is_repeated_on_request(trained_by, tmp_path, capsys):
    trained_by(OLD)
    assert select(tmp_path, rerun_on_code_change=True) == f"{KEY}-{NEW}"
    assert f"the code changed: starting from scratch in {tmp_path / f'{KEY}-{NEW}'}; kept: {KEY}-{OLD}" in (
        capsys.readouterr().out
    )


def test_a_half_finished_training_of_other_code_is_kept_and_named(trained_by, tmp_path, capsys):
    trained_by(OLD, finished=False)
    assert select(tmp_path) == f"{KEY}-{NEW}"
    printed = capsys.readouterr().out
    assert "the code changed: starting from scratch" in printed and f"kept: {KEY}-{OLD}" in printed
    assert f"rename it to {KEY}-{NEW} and run again" in printed


def test_another_recipe_is_another_training(trained_by, tmp_path, capsys):
    trained_by(NEW, key="1" * 16)
    assert select(tmp_path) == f"{KEY}-{NEW}"
    assert "recipe, data, base or number of processes changed: starting from scratch" in capsys.readouterr().out


def test_a_renamed_folder_remembers_the_code_that_started_it(trained_by, tmp_path):
    folder = trained_by(OLD, finished=False).rename(tmp_path / f"{KEY}-{NEW}")
    record_code(folder, NEW, MODULES)
    assert recorded_code(folder)["code"] == NEW
    assert read_json(folder / "code.json")["started_by"]["code"] == OLD


def test_decoder_and_metrics_count_only_where_they_choose_the_checkpoint():
    recipe = load_recipe({})
    assert training_code(recipe) == code_identity(*MODULES)
    recipe = load_recipe({"custom": {"detection_eval": {"every": 10}}})
    assert training_code(recipe) == code_identity(*MODULES, EVAL_MODULE) != code_identity(*MODULES)


def edited(root, name, change):
    """Training code of the library in `root` after a change of one of its modules."""
    file = root / "coordexp" / name
    before = file.read_text()
    after = change(before)
    assert after != before
    file.write_text(after)
    for cache in (identity.closure, identity._imports, identity._normalised):
        cache.cache_clear()
    try:
        return code_identity(*MODULES, roots=[root])
    finally:
        file.write_text(before)
        for cache in (identity.closure, identity._imports, identity._normalised):
            cache.cache_clear()


def test_half_finished_training_outlasts_comments_docstrings_and_infrastructure_but_no_loss_line(tmp_path):
    shutil.copytree(SOURCES / "coordexp", tmp_path / "coordexp")
    before = code_identity(*MODULES, roots=[tmp_path])
    comment = edited(tmp_path, "losses/criterion.py", lambda text: text + "\n# a remark\n")
    docstring = edited(tmp_path, "losses/criterion.py", lambda text: text.replace('"""', '"""Reworded. ', 1))
    infrastructure = edited(tmp_path, "runtime/tuning.py", lambda text: text.replace("8192", "4096"))
    assert comment == docstring == infrastructure == before
    assert edited(tmp_path, "losses/criterion.py", lambda text: text + "\nUNUSED = 1\n") != before


def test_the_training_records_versions_and_commit_of_its_process(tmp_path):
    record_code(tmp_path, NEW, MODULES)
    made = recorded_code(tmp_path)
    assert {"python", "torch", "transformers", "ms-swift"} <= made["software"].keys()
    assert made["revision"].keys() == {"commit", "changed_files"}


def test_experiment_trackers_do_not_make_another_training(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    keys = {
        training_key(parse_recipe({"training": {"max_steps": 5, **more}}, "own.yaml"), tmp_path)
        for more in ({}, {"report_to": ["wandb"]}, {"report_to": "swanlab"})
    }
    assert len(keys) == 1
