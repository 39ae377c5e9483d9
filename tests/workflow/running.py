"""Real Snakemake runs of this repository's workflow in a temporary folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from coordexp.records import Detection, Prediction, read_records
from coordexp.runtime.io import write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]

SMALL = {
    "data": {"tiny": 4},
    "datasets": {
        "shapes": {
            "format": "shapes",
            "image_size": 96,
            "objects": [1, 2],
            "splits": {"train": {"count": 24, "seed": 1}, "val": {"count": 6, "seed": 2}},
        },
    },
    "runs": {
        "shapes": {
            "recipe": {
                "training": {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1},
                "custom": {
                    "loss": {"weights": {"l1": 1.0, "giou": 1.0}, "geometry_warmup": {"start": 0.0, "end": 0.0}}
                },
            }
        }
    },
    "predict": {"max_new_tokens": 96},
    "evaluate": {"bootstrap": 10},
    "report": {"gallery": 4},
}


class Workflow:
    """Runs Snakemake in `folder`, where everything is written."""

    def __init__(self, folder: Path, changes: dict, repository: Path = REPOSITORY):
        self.folder, self.repository = folder, repository
        self.change(changes)

    def change(self, changes: dict) -> None:
        """Write the configuration that is merged over the repository's."""
        self.changes = changes
        (self.folder / "changes.yaml").write_text(yaml.safe_dump(changes, sort_keys=False))

    def run(self, *arguments: str, check: bool = True, timeout: int = 900) -> subprocess.CompletedProcess:
        """`snakemake ARGUMENTS`; fails the test with the log when the exit code is not 0."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.repository / "Snakefile")]
        command += ["--configfile", str(self.repository / "config/config.yaml"), str(self.folder / "changes.yaml")]
        command += ["--workflow-profile", str(self.repository / "profiles/default"), "--directory", str(self.folder)]
        command += ["--cores", "2"]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False, env=env
        )
        if check and done.returncode:
            pytest.fail(f"snakemake {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def planned(self, *targets: str, allowed: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> dict[str, int]:
        """Number of jobs per rule in a dry run; with `allowed`, of these rules only."""
        only = ("--allowed-rules", *allowed) if allowed else ()
        out = self.run("--dry-run", *options, *only, "--quiet", "host", "reason", "--", *targets).stdout
        table = out.split("Job stats:", 1)[1] if "Job stats:" in out else ""
        counts = dict(re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE))
        return {rule: int(count) for rule, count in counts.items() if rule != "total"}

    def path(self, relative: str) -> Path:
        """A file of the run."""
        return self.folder / relative


def answer(folder: Path, records: str, shard: str, seed: int) -> None:
    """A synthetic shard of predictions, in which detections with a high score are more often correct."""
    rng = np.random.default_rng(seed)
    rows = []
    for record in read_records(folder / records, "pixel"):
        found = []
        for obj in record.objects * 4:
            sure = rng.uniform(-1.5, 0)
            shift = 0.0 if rng.random() < 1 + sure / 1.5 else 0.3
            box = np.clip(np.array(obj.norm_box) + rng.normal(0, 0.01, 4) + shift, 0, 1).tolist()
            names = ("next_logprob", "desc_logprob", "slot_logmass", "slot_logprob")
            parts = {**dict.fromkeys(names, float(sure)), "spread": 0.01}
            found.append(Detection(obj.desc, box, float(np.exp(6 * sure)), score_parts=parts))
        meta = record.metadata
        rows.append(Prediction(meta.image_id, meta.source_width, meta.source_height, "open", "stop", "", found))
    (folder / shard).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / shard, rows)
