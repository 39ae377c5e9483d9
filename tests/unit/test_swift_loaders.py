"""Loader processes: no more than the threads that were given, and never a word in what is trained on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from coordexp.io import read_jsonl
from coordexp.swift.launch import Layout
from coordexp.swift.train import held_to_threads

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 5  # of eight of the 24 samples: into the second epoch


@pytest.mark.parametrize(
    ("asked", "processes", "threads", "granted"),
    [(2, 1, 8, 2), (2, 1, 1, 1), (4, 8, 8, 1), (4, 8, 32, 4), (1, 2, 2, 1), (0, 1, 1, 0), (None, 1, 4, None)],
)
def test_loaders_of_a_process_are_at_most_its_share_of_the_threads(asked, processes, threads, granted, capsys):
    given = {"dataloader_num_workers": asked, "seed": 17}
    held = held_to_threads(given, Layout(processes=processes, threads=threads))
    assert held == {"dataloader_num_workers": granted, "seed": 17}
    said = capsys.readouterr().out
    assert (f"{granted} of {asked} loader processes" in said) == (granted != asked)


@pytest.mark.slow
def test_a_loader_changes_nothing_in_any_epoch(shapes_data, tiny_model, tmp_path):
    """Every epoch draws orders of its own, also in loaders that outlive an epoch."""
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
    """A few steps of the demo's recipe in random orders, with `loaders` processes beside it."""
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
