"""A stand-in for `conda`: the calls that Snakemake makes, by venv and pip. It installs what an environment file
lists under `pip:`, and cannot know whether conda's channels have the rest.

Environments with PyTorch are not built anew (7 GB): the pins are compared with what STANDIN_READY has, the folder of
an environment that is there, and that one is activated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def pip_lines(file: Path) -> list[str]:
    """`name==version` of each package under `pip:`; an error for anything else but Python and pip themselves."""
    listed = yaml.safe_load(file.read_text())["dependencies"]
    others = [entry for entry in listed if isinstance(entry, str)]
    if others != ["python =3.11", "pip"]:
        sys.exit(f"{file}: {others} would come from a channel")
    return ["".join(line.split()) for entry in listed if isinstance(entry, dict) for line in entry["pip"]]


def create(file: Path, prefix: Path) -> None:
    """Build the environment, or take the one that is ready."""
    wanted = pip_lines(file)
    if any(line.startswith("torch==") for line in wanted):
        return borrow(wanted, prefix)
    subprocess.run([sys.executable, "-m", "venv", str(prefix)], check=True)
    pip = [str(prefix / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)


def borrow(wanted: list[str], prefix: Path) -> None:
    """Link the Python that is ready, after a look at its versions."""
    ready = Path(os.environ["STANDIN_READY"])
    pins = dict(line.split("==") for line in wanted)
    found = subprocess.run([ready / "bin/python", "-c", VERSIONS, *pins], check=True, capture_output=True, text=True)
    if json.loads(found.stdout) != pins:
        sys.exit(f"{ready} has other versions: {found.stdout}, expected {pins}")
    prefix.mkdir(parents=True)
    shutil.copy(ready / "pyvenv.cfg", prefix)
    for name in ("bin", "lib"):
        (prefix / name).symlink_to(ready / name)


def main(words: list[str]) -> None:
    """Answer one call."""
    root = Path(os.environ["STANDIN_ROOT"])
    with (root / "calls").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    match words:
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": str(root), "platform": "linux-64"}))
        case ["--version"]:
            print("conda 24.7.1")
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["env", "create", "--quiet", "--no-default-packages", "--file", file, "--prefix", prefix]:
            create(Path(file), Path(prefix))
        case ["clean", "-y", *_]:
            pass
        case _:
            sys.exit(f"the stand-in for conda does not know: {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
