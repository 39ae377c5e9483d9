"""A name that a plug-in registers is valid in the configuration, the schema, the reference page and the workflow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
MEDIAN = """
from coordexp.inference.coordinates import DECODERS


@DECODERS.register("median")
def median(probs, mode, options):
    return (probs.cumsum(-1) < 0.5).sum(-1).to(probs.dtype)
"""
CHECK = """
import importlib.util, sys
from pathlib import Path
from coordexp.config.schema import json_schema
from coordexp.config.settings import Settings, over_defaults

root, plugin = map(Path, sys.argv[1:])
settings = Settings.load(over_defaults({"plugins": [str(plugin)], "predict": {"decode": "median"}}, root), root)
print(settings.prediction("shapes_9")["options"]["decode"])
print(json_schema()["$defs"]["PredictSection"]["properties"]["decode"]["enum"])
spec = importlib.util.spec_from_file_location("make_reference", root / "docs/make_reference.py")
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)
print(next(line for line in page.page().splitlines() if "`predict.decode`" in line))
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MEDIAN)
    return path


def run(*command, folder):
    """Output of a process of its own: registries belong to a process."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(REPOSITORY / "src")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_a_decoding_mode_of_a_plug_in_is_a_choice_everywhere(plugin, tmp_path):
    printed = run(sys.executable, "-c", CHECK, str(REPOSITORY), str(plugin), folder=tmp_path).splitlines()
    assert printed[:2] == ["median", "['argmax', 'expectation', 'local', 'median']"]
    assert "`argmax` or `expectation` or `local` or `median`" in printed[2]


def dry_run(folder, *config):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--dry-run"]
    command += ["--configfile", str(REPOSITORY / "config/config.yaml"), "--printshellcmds", "--cores", "1"]
    return run(*command, "results/shapes_9/eval.json", "--config", *config, folder=folder)


def test_the_workflow_plans_it_and_its_jobs_load_the_plug_in(plugin, tmp_path):
    printed = dry_run(tmp_path, f"plugins=['{plugin}']", "predict={decode: median}")
    assert '"decode":"median"' in printed and "Job stats" in printed
    assert "unknown decoding mode 'median'" in dry_run(tmp_path, "predict={decode: median}")


def test_a_missing_plug_in_is_named(tmp_path):
    assert "plugins: plug-in file not found" in dry_run(tmp_path, "plugins=[mine.py]")
