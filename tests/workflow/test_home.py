"""A home folder that cannot be written, as in some containers and batch jobs."""

import os
import subprocess
import sys

import pytest
from running import REPOSITORY, SMALL, Workflow


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """$HOME is below a file, which not even root can write to."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)


def made(target, **variables):
    """What the recipe line `target` prints with the Makefile's environment."""
    command = ["make", "--no-print-directory", "-f", "Makefile", f"--eval=show:\n\t@echo {target}", "show"]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_make_gives_snakemake_another_cache(no_home, tmp_path):
    assert made("$$XDG_CACHE_HOME") == str(REPOSITORY / ".snakemake/cache")
    assert made("$$XDG_CACHE_HOME", XDG_CACHE_HOME="/mine") == "/mine"
    assert made("$$XDG_CACHE_HOME", HOME=str(tmp_path)) == ""


def test_commands_and_rules_run(no_home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    workflow = Workflow(tmp_path / "work", SMALL)
    done = workflow.run("results/shapes_9/data/val.jsonl", "results/models/tiny-coordexp/config.json")
    assert "~" not in done.stdout and not (tmp_path / "work" / "~").exists()
    records, model = (str(workflow.path(name)) for name in ("results/shapes_9/data/val.jsonl", "results/models"))
    for command in (["validate", records], ["doctor", records, "--model", f"{model}/tiny-coordexp"]):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        ran = subprocess.run(
            [sys.executable, "-m", "coordexp.cli", *command], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert "Traceback" not in ran.stderr
