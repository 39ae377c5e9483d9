"""Loader workers: at most one per thread, no influence on training, and no end at SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from coordexp.runtime.io import read_jsonl
from coordexp.training.swift_arguments import cap_workers

REPOSITORY = Path(__file__).resolve().parents[4]
STEPS = 5  # of eight of the 24 samples: into the second epoch


@pytest.mark.parametrize(
    ("requested", "processes", "threads", "granted"),
    [(2, 1, 8, 2), (2, 1, 1, 1), (4, 8, 8, 1), (4, 8, 32, 4), (1, 2, 2, 1), (0, 1, 1, 0), (None, 1, 4, None)],
)
def test_loader_workers_of_a_process_are_at_most_its_threads(requested, processes, threads, granted, capsys):
    given = {"dataloader_num_workers": requested, "seed": 17}
    capped = cap_workers(given, processes, threads)
    assert capped == {"dataloader_num_workers": granted, "seed": 17}
    printed = capsys.readouterr().out
    assert (f"{granted} instead of {requested} loader workers" in printed) == (granted != requested)


@pytest.mark.slow
def test_a_loader_worker_does_not_change_training(shapes_data, tiny_model, tmp_path):
    """Every epoch draws new orders, also in workers that outlive an epoch."""
    logs, weights = [], []
    for loaders in (0, 1):
        folder = tmp_path / str(loaders)
        folder.mkdir()
        train(folder, loaders, shapes_data, tiny_model)
        logs.append([line["loss"] for line in read_jsonl(folder / "log.jsonl") if "loss" in line])
        weights.append(load_file(folder / "adapter" / "model.safetensors"))
    assert len(logs[0]) == STEPS and logs[0] == logs[1]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def train(folder: Path, loaders: int, data: Path, model: Path) -> None:
    """A few steps of the demo's recipe in random orders, with `loaders` loader workers."""
    recipe = {
        "training": {"max_steps": STEPS, "save_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 8},
        "data": {"dataloader_num_workers": loaders},
        "custom": {"object_ordering": "random"},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "coordexp.cli", "train", "--config", str(folder / "own.yaml")]
    command += ["--base_config", str(REPOSITORY / "config/train/full_tiny.yaml"), "--model", str(model)]
    command += ["--train-jsonl", str(data / "train.coord.jsonl"), "--out", str(folder / "adapter")]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


# A loader whose process group gets SIGTERM, in a process that then exits, is killed, or closes the loader.
SURVIVING_LOADER = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from coordexp.training.ms_swift.dataloader import sigterm_safe_loader

signal.signal(signal.SIGTERM, lambda *_: None)
class Rows:
    def __len__(self): return 100
    def __getitem__(self, index): time.sleep(0.05); return index
batches = iter(sigterm_safe_loader(DataLoader(Rows(), num_workers=1, persistent_workers=True)))
next(batches)
os.killpg(0, signal.SIGTERM)
assert sum(1 for _ in range(20) if next(batches) is not None) == 20  # no fewer than were fetched ahead
print(batches._workers[0].pid, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "closed":
    worker = batches._workers[0]
    batches._shutdown_workers()
    assert not worker.is_alive()
"""


@pytest.mark.parametrize("parent", ["exits", "killed", "closed"])
def test_a_loader_worker_survives_sigterm_but_not_its_parent(parent):
    command = [sys.executable, "-c", SURVIVING_LOADER, parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True, check=False)
    assert done.returncode == (-signal.SIGKILL if parent == "killed" else 0), done.stderr
    deadline = time.monotonic() + 5
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
