"""Files in the working directory replace neither Python's modules nor those of the library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coordexp.training import launch

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = ("random.py", "json.py", "secrets.py", "yaml.py", "torch.py", "coordexp/__init__.py", "snakemake/__init__.py")
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def hostile(tmp_path):
    """A copy of the workflow that is the working directory and contains modules with the names of others."""
    for name in ("Snakefile", "rules", "workflow_scripts", "src", "config", "envs", "profiles"):
        (shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy)(REPOSITORY / name, tmp_path / name)
    for name in HOSTILE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit(f'shadowed by {__file__}')\n")
    return tmp_path


def run(hostile, *command, **variables):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PATH": f"{SCRIPTS}{os.pathsep}{env['PATH']}"} | variables
    done = subprocess.run(command, cwd=hostile, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "shadowed" not in done.stdout + done.stderr, done.stdout + done.stderr


def test_in_snakemake_and_its_jobs(hostile):
    """The jobs convert in worker processes."""
    shapes = "datasets={shapes: {splits: {train: {count: 4}, val: {count: 4}}}}"
    target = "results/shapes_9/data/val.jsonl"
    run(hostile, str(SCRIPTS / "snakemake"), "--cores", "2", target, "--config", shapes, "data={num_workers: 2}")


def test_in_training_processes(hostile):
    """In torchrun, and in processes that it or a library starts with `spawn`."""
    variables = launch._import_variables()
    run(hostile, sys.executable, "-m", "coordexp.training.elastic", "--help", **variables)
    spawn = (
        "import multiprocessing, os, sys; context = multiprocessing.get_context('spawn'); p = context.Process("
        "target=os.getpid); p.start(); p.join(); sys.exit(p.exitcode)"
    )
    run(hostile, sys.executable, "-c", spawn, **variables)
