"""A rule of the workflow about to run, in a copy of a finished run, and the faults that befall it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = ("Snakefile", "rules", "workflow_scripts", "src", "config", "envs", "profiles")
RUN, OTHER = "results/shapes_9", "results/shapes_4"
TARGETS = (
    *("shapes_9/eval.json", "shapes_9/report.html", "shapes_9/data/complete"),
    "compare/shapes_9+shapes_4/report.html",
    "compare/shapes_9+shapes_4/leaderboard.html",
    "sweeps/decoding/summary.json",
)
CHANGES = {
    "data": {"tiny": 4, "num_workers": 2},
    "datasets": {"shapes": {"splits": {"train": {"count": 40, "seed": 1}, "val": {"count": 6, "seed": 2}}}},
    "models": {"tiny": {"hidden": 64, "layers": 2}},
    "runs": {
        "shapes": {
            "train": {"processes": 1},
            "recipe": {
                "training": {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1},
                "custom": {"loss": {"geometry_warmup": {"start": 0.0, "end": 0.0}}},
            },
        }
    },
    "predict": {"max_new_tokens": 48},
    "calibrate": {"images": 12, "method": "logistic"},
    "evaluate": {"bootstrap": 10},
    "report": {"gallery": 4},
    "sweeps": {"decoding": {"run": "shapes_9", "axes": {"predict.decode": ["argmax", "local"]}}},
}
# What a rule leaves beside the outputs that it declares; the files of others are declared all.
BESIDE = {
    "download": ("resources/shapes/raw/images/val", "resources/shapes/raw/val.annotations.json"),
    "convert_resize": (f"{RUN}/data/images/val",),
    "fetch_model": ("resources/models/tiny",),
    "expand_vocab": ("results/models/tiny-coordexp",),
    "train": (f"{RUN}/train/adapter", f"{RUN}/train/checkpoints"),
    "merge": (f"{RUN}/merged",),
}
CHILD = {
    "train": "coordexp.training.ms_swift.worker"
}  # the process that does the work, where the script starts another
VARYING = re.compile(r"seconds|runtime|per_second|elapsed|remaining|speed|memory|time|path|created|flos")

spec = importlib.util.spec_from_file_location("make_reruns", REPOSITORY / "docs" / "make_reruns.py")
reruns = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reruns)
PLAN = reruns.plan(CHANGES, TARGETS)


def jobs() -> dict[str, tuple[str, ...]]:
    """Outputs by rule, in the order of the work; of a rule with several jobs the one of the first run and of `val`."""
    found: dict[str, tuple[str, ...]] = {}
    for rule in reruns.stages(PLAN):
        own = [name[1:] for name in PLAN if name[0] == rule]
        own.sort(key=lambda files: (f"{RUN}/" not in files[0], "val" not in files[0]))
        if (REPOSITORY / "workflow_scripts" / f"{rule}.py").exists():  # others are targets
            found[rule] = own[0]
    return found


class Scene:
    """A working folder in which Snakemake runs a copy of the repository that can stop its processes."""

    started: typing.ClassVar[list[subprocess.Popen]] = []

    def __init__(self, folder: Path, repository: Path, changes: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.repository, self.changes, self.times = folder, repository, changes, 0
        (folder / "changes.yaml").write_text(yaml.safe_dump(changes))

    def start(self, *arguments: str, fault: dict | None = None) -> subprocess.Popen:
        """`snakemake ARGUMENTS` as the leader of a process group of its own."""
        self.times += 1
        self.trace = self.folder / f"trace{self.times}.jsonl"
        fault = {"trace": str(self.trace), **(fault or {})}
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.repository / "Snakefile"), "--cores", "2"]
        command += ["--configfile", str(self.repository / "config/config.yaml"), "changes.yaml"]
        command += ["--workflow-profile", str(self.repository / "profiles/default"), *arguments]
        env = {**os.environ, "FAULT": json.dumps(fault), "HF_HUB_OFFLINE": "1"}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        self.log = self.folder / f"snakemake{self.times}.log"
        with self.log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str, fault: dict | None = None) -> tuple[int, str]:
        """Exit code and everything printed."""
        process = self.start(*arguments, fault=fault)
        log = self.log
        return process.wait(900), log.read_text()

    def hold(self, entry: str, **when) -> dict:
        """A fault that stops the process `entry` until `release` is touched."""
        for name in ("reached", "release"):
            (self.folder / name).unlink(missing_ok=True)
        return {"do": "hold", "entry": entry, "reached": str(self.folder / "reached"), **when} | {
            "release": str(self.folder / "release")
        }

    def wait_for(self, condition, process: subprocess.Popen, seconds: float = 600) -> None:
        """Until `condition()`; an error with the log when `process` ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"snakemake ended with {process.poll()}:\n{self.log.read_text()}")
            time.sleep(0.02)

    def reached(self) -> bool:
        """Whether a held process has come to its moment."""
        return (self.folder / "reached").exists() and (self.folder / "reached").read_text() != ""

    def release(self) -> None:
        """Let the held process go on."""
        (self.folder / "release").touch()

    def spent(self, trace: Path, *only: int | str) -> float:
        """CPU seconds of the processes of rules, those that were killed included; `only` of some pids or entries."""
        last: dict[int, dict] = {}
        for line in trace.read_text().splitlines() if trace.exists() else []:
            fact = json.loads(line)
            last[fact["pid"]] = fact
        nested = {fact["entry"] for fact in last.values()} & set(CHILD.values())
        outer = "workflow_scripts.train" if nested else None  # its children are counted by themselves
        kept = [f for f in last.values() if not only or f["pid"] in only or (nested and f["entry"] in only)]
        return sum(f["own"] + (0 if f["entry"] == outer else f["children"]) for f in kept)


def copy_repository(folder: Path) -> Path:
    """The sources, with the hook that faults need."""
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    shutil.copy(Path(__file__).with_name("sitecustomize.py"), folder / "src")
    return folder


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, object]:
    """Files below `names` with what they hold; of JSON without what differs from run to run."""
    files: list[Path] = []
    for name in names:
        path = folder / name
        files += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path] if path.exists() else []
    kept = [p for p in files if not re.search(r"\.lock$|/checkpoints/|\.pt$|\.bin$|args\.json$|/job\.json$", str(p))]
    return {str(p.relative_to(folder)): _content(p, folder) for p in kept}


def _content(path: Path, folder: Path) -> object:
    data = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    data = re.sub(rb'/[^"\s<>&;]*(?=/(?:results|resources)/)', b"FOLDER", data)  # what a copied state was made in
    if path.suffix in (".json", ".jsonl"):
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        return [_steady(json.loads(line)) for line in lines]
    if path.suffix == ".html":
        return re.sub(rb"\d{4}-\d\d-\d\d[T ][\d:.+Z]+|[\d.]+ (?:s|ms|GB|MB)\b", b"", data)
    return data


def _steady(value: object) -> object:
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if not VARYING.search(key)}
    return [_steady(inner) for inner in value] if isinstance(value, list) else value


def group_is_gone(process: subprocess.Popen) -> bool:
    """Whether no process of the group is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return False
    return True


def stop(process: subprocess.Popen) -> None:
    """Kill what a failed test left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def interrupt(process: subprocess.Popen, release: typing.Callable[[], None] | None = None) -> None:
    """Ctrl-C, then `release` a held process that finishes its work first; an error unless everything has ended soon."""
    os.killpg(process.pid, signal.SIGINT)
    if release is not None:
        time.sleep(1)
        release()
    assert process.wait(120) != 0
    deadline = time.monotonic() + 20
    while not group_is_gone(process):
        assert time.monotonic() < deadline, "a process of the job is left"
        time.sleep(0.1)


def fill(disk: Path) -> None:
    """Write a file until not a byte is free."""
    size = 1 << 20
    with (disk / "filler").open("wb", buffering=0) as filler:
        while size:
            try:
                filler.write(b"\0" * size)
            except OSError:
                size //= 2
