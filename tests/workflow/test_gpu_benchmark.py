"""The measurements for a GPU run at toy size on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FEW = ("environment", "attention", "checkpoint", "train:ours_dora_b8", "decode:16")


@pytest.mark.parametrize("steps", [FEW, pytest.param((), marks=pytest.mark.soak)], ids=["few", "all"])
def test_every_step_runs_on_a_cpu(steps, tmp_path):
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    only = ["--only", *steps] if steps else []
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--minutes", "15", *folders, *only]
    roots = os.pathsep.join(map(str, (REPOSITORY / "src", REPOSITORY)))
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"PYTHONPATH": roots})
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert not any("failed" in row or "skipped" in row for row in rows)
    decoded = next(row for row in rows if row["step"] == "decode")
    assert decoded["objects"] == 2 * decoded["images"]
    trained = next(row for row in rows if row.get("variant") == "ours_dora_b8")
    assert trained["tokens"][0] == 8 and trained["step_ms"] > 0
