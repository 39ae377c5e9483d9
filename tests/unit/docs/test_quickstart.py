"""The notebook docs/quickstart.ipynb: its cells run, its committed outputs are complete and small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib
import pytest

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings
from coordexp.runtime.io import write_json

NOTEBOOK = Path(__file__).resolve().parents[3] / "docs" / "quickstart.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def run(taught, records, tmp_path) -> Path:
    """A run with the taught checkpoint and the records of its images."""
    (tmp_path / "run" / "merged").mkdir(parents=True)
    for file in taught.iterdir():
        (tmp_path / "run" / "merged" / file.name).symlink_to(file)
    settings = InferenceSettings(max_blocks=15, min_blocks=1, factor=32, resize="shrink")
    write_json(tmp_path / "run" / "merged" / FILE_NAME, settings)
    (tmp_path / "run" / "data").symlink_to(records.parent)
    return tmp_path / "run"


def test_the_cells_run(run, monkeypatch, capsys):
    matplotlib.use("Agg", force=True)
    monkeypatch.setenv("COORDEXP_RUN", str(run))
    names: dict = {}
    for cell in CELLS:
        exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert names["found"].answer in printed
    rows = [[int(value) for value in row] for row in re.findall(r"^open +\S+ +(\d+) +(\d+) +(\d+)$", printed, re.M)]
    assert [row[2] for row in rows] == [2, 2, 2] and rows[0][0] == sum(
        map(len, names["detector"].detect(names["paths"]))
    )


def test_the_notebook_runs_in_jupyter(run, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("COORDEXP_RUN", str(run))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_the_outputs_are_complete_and_small():
    assert NOTEBOOK.stat().st_size < 100_000
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "/home/" not in NOTEBOOK.read_text() and "/root/" not in NOTEBOOK.read_text()
