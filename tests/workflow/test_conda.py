"""`--sdm conda` from environments to report: envs/data.yaml and envs/eval.yaml are built from their files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import standin_conda

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.soak  # downloads and installs two environments


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """Folder with a `conda` on its `bin/`, and what is put into the environment to find it."""
    root = tmp_path_factory.mktemp("conda")
    (root / "bin").mkdir()
    (root / "bin/conda").write_text(f'#!/bin/sh\nexec {sys.executable} {standin_conda.__file__} "$@"\n')
    (root / "bin/conda").chmod(0o755)
    (root / "bin/activate").write_text(standin_conda.ACTIVATE)
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "msgspec==0.22.0", "-d", str(root)]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    return root


@pytest.fixture(scope="module")
def deployed(conda, new_workflow):
    """The small demo, run with every rule in its own environment."""
    patch = pytest.MonkeyPatch()
    patch.setenv("STANDIN_ROOT", str(conda))
    patch.setenv("STANDIN_READY", str(Path(sys.prefix)))
    patch.setenv("PATH", f"{conda / 'bin'}{os.pathsep}{os.environ['PATH']}")
    workflow = new_workflow("deployed")
    targets = ("results/shapes_9/eval.json", "results/shapes_9/report.html")
    workflow.run("--sdm", "conda", "--conda-prefix", str(conda / "envs"), "--", *targets, timeout=1800)
    yield workflow
    patch.undo()


def test_each_environment_is_made_once(deployed, conda):
    created = [line for line in (conda / "calls").read_text().splitlines() if line.startswith("env create")]
    assert len(created) == len(list((REPOSITORY / "envs").glob("*.yaml"))) == 3


def test_the_data_environment_has_no_torch_and_its_rules_ran(deployed, conda):
    built = [folder for folder in (conda / "envs").iterdir() if folder.is_dir() and not (folder / "lib").is_symlink()]
    assert len(built) == 2
    for folder in built:
        site = next((folder / "lib").glob("python*/site-packages"))
        assert (site / "msgspec").is_dir()
        assert not {"torch", "snakemake", "swift", "transformers"} & {path.name for path in site.iterdir()}
    assert deployed.path("results/shapes_9/data/val.jsonl").stat().st_size > 0


def test_the_run_ends_with_numbers_and_a_page(deployed):
    assert deployed.path("results/shapes_9/eval.json").stat().st_size > 0
    assert deployed.path("results/shapes_9/report.html").stat().st_size > 10_000
