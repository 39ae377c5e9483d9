"""The wheel of a release: built from a copy of the sources, installed in a new environment, and used from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from coordexp import __version__

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*command, **options) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "src" / "coordexp", folder / "sources" / "src" / "coordexp", ignore=copy)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "sources")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "sources")
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("coordexp/")}
    package = REPOSITORY / "src" / "coordexp"
    sources = {
        f"coordexp/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == sources


def test_the_command_works_from_a_new_environment(wheel, tmp_path):
    venv.create(tmp_path / "new", with_pip=False, symlinks=True)
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(tmp_path / "new")}))
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "new")}))
    python = str(scripts / "python")
    # The dependencies are those of this environment; coordexp itself comes from the wheel.
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    assert run(scripts / "coordexp", "--version", cwd=tmp_path) == f"coordexp {__version__}\n"
    code = "import coordexp; from coordexp.reporting import report; print(coordexp.__file__, report.TEMPLATES.is_dir())"
    file, templates = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(site) and templates == "True"
    assert "exit codes:" in run(scripts / "coordexp", "--help", cwd=tmp_path)


def test_version_citation_and_changelog_agree():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert changelog.split("\n## ")[1].startswith(__version__)
