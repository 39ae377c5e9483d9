"""Snakemake as a user of SLURM would start it: the shipped profile, and what a site changes on top."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]

# What a site changes: no accounting database here, and nobody waits half a minute for a job of seconds.
SITE = (
    *("--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "15"),
)


class Run:
    """`snakemake --workflow-profile profiles/slurm ...` in the background, in a folder of its own."""

    def __init__(
        self, cluster: Cluster, folder: Path, changes: dict, *arguments: str, name: str = "run", **environment: str
    ):
        self.cluster, self.folder = cluster, folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(changes))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
        command += ["--workflow-profile", str(REPOSITORY / "profiles/slurm"), *SITE]
        command += ["--configfile", str(REPOSITORY / "config/config.yaml"), f"{name}.yaml", *arguments]
        self.printed = folder / f"{name}.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{cluster.env['PATH']}"
        env = {**cluster.env, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment}
        with self.printed.open("w") as out:
            self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)

    def until(self, seen, what: str, seconds: float = 900.0):
        """The first true value of `seen()`; the test fails when Snakemake ends before."""
        deadline = time.monotonic() + seconds
        while not (value := seen()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{what} did not come to pass\n{self.text()}\n{self.cluster.logs()}")
            time.sleep(0.1)
        return value

    def finish(self, seconds: float = 1800.0) -> None:
        """Wait for the end, which has to be a good one."""
        code = self.process.wait(seconds)
        assert code == 0, f"{self.text()}\n{self.cluster.logs()}"

    def stop(self) -> None:
        """Nothing goes on after the test."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def text(self) -> str:
        """What Snakemake printed."""
        return self.printed.read_text()

    def jobs(self, rule: str = "") -> list[dict[str, str]]:
        """SLURM's records of this run's jobs, of one rule or group if named."""
        name = re.search(r"SLURM run ID: (\S+)", self.text())
        jobs = [job for job in self.cluster.jobs() if name and job["JobName"] == name[1]]
        return [job for job in jobs if rule in job["Comment"]]

    def environments(self, job: str) -> list[dict[str, str]]:
        """What the training processes of a SLURM job, on whatever node, find in their environment."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            except OSError:
                continue
            if b"coordexp.training.ms_swift.worker" in command and f"SLURM_JOB_ID={job}\0".encode() in environment:
                lines = environment.decode(errors="replace").split("\0")
                found.append(dict(line.split("=", 1) for line in lines if "=" in line))
        return found

    def path(self, relative: str) -> Path:
        """A file of the run."""
        return self.folder / relative
