"""`coordexp train` refuses outputs of others before it reads or writes anything."""

import pytest

from coordexp import cli
from coordexp.runtime.errors import ConfigError
from coordexp.training.train import refuse_foreign_outputs


@pytest.mark.parametrize("out", ["mine", ".", "mine/.."])
def test_train_refuses_a_folder_of_others(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "recipe.yaml").write_text("custom: {}\n")
    assert cli.main(["train", "--config", "recipe.yaml", "--model", "base", "--out", out]) == 2
    assert "output folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "notes.txt", "recipe.yaml"]


def test_a_log_of_others_is_refused_and_one_of_a_training_is_not(tmp_path):
    log = tmp_path / "log.jsonl"
    refuse_foreign_outputs(tmp_path / "adapter", log)
    log.write_text("mine")
    with pytest.raises(ConfigError, match="was not written by training"):
        refuse_foreign_outputs(tmp_path / "adapter", log)
    job = tmp_path / "checkpoints" / "key" / "job.json"
    job.parent.mkdir(parents=True)
    job.write_text("{}")
    refuse_foreign_outputs(tmp_path / "adapter", log)
