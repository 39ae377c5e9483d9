"""Training with rollouts in real training processes, resumed."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from inference_helpers import NAMES, SIZES, images, objects, taught_checkpoint
from safetensors.torch import load_file

from coordexp.answers.render import PromptStyle
from coordexp.datasets.samples import CategoryTable
from coordexp.recipe import load_recipe
from coordexp.records import Metadata, Record, coord_bin, coord_token
from coordexp.runtime.io import write_json, write_jsonl
from coordexp.training.launch import DistributedConfig
from coordexp.training.train import train

REPOSITORY = Path(__file__).resolve().parents[3]
STEPS, BATCH, ACCUMULATED = 3, 2, 2


def annotated(n):
    """What the model was taught for image n, but with shifted boxes, and without the first of several."""
    found = []
    for obj in objects(n):
        bins = [min(coord_bin(token) + 3, 999) for token in obj.coords]
        box = [coord_token(k) for k in bins]
        category = 1 + NAMES.index(obj.desc)
        found.append(msgspec.structs.replace(obj, category_id=category, norm=[k / 999 for k in bins], bbox_2d=box))
    return found[len(found) > 1 :]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught-images")
    for n, image in enumerate(images()):
        image.save(folder / f"{n}.png")
    rows = [
        Record([f"{n}.png"], *SIZES[n], "token", annotated(n), Metadata(i, *SIZES[n]))
        for i, n in enumerate([*range(len(SIZES))] * 4)
    ]
    write_jsonl(folder / "train.coord.jsonl", rows)
    write_json(folder / "categories.json", CategoryTable(dict(enumerate(NAMES, 1)), exhaustive=True))
    return folder / "train.coord.jsonl"


def run(folder, data):
    """Train in `folder`; returns the weights and the rows of the log."""
    recipe = load_recipe(
        REPOSITORY / "config/train/full_tiny.yaml",
        {
            "training": {
                "max_steps": STEPS,
                "per_device_train_batch_size": BATCH,
                "gradient_accumulation_steps": ACCUMULATED,
                "save_steps": 2,
                "save_total_limit": 3,
                "logging_steps": 1,
                "learning_rate": 1e-4,
            },
            "custom": {
                "train_jsonl": str(data),
                "categories": str(data.with_name("categories.json")),
                "json_format": "standard",
                "loss": {"weights": {"unlikelihood": 1.0}},
                "rollout": {"share": 0.5, "start": 0.0, "full": 0.3, "max_new_tokens": 200, "batch_size": 2},
            },
            "tuner": {"tuner_type": "lora", "lora_rank": 4, "target_modules": ["all-linear"]},
        },
    )
    distributed = DistributedConfig(processes=2, threads=2)
    train(recipe, taught_checkpoint(PromptStyle()), folder / "adapter", folder / "log.jsonl", distributed)
    (file,) = (folder / "adapter").glob("*model.safetensors")
    return load_file(file), [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_resumed_training_repeats_the_rollouts_of_the_interrupted_one(data, tmp_path):
    """Adapters in two processes, which answer their own samples; the log counts those of both."""
    weights, log = run(tmp_path / "whole", data)
    steps = [row for row in log if "loss" in row]
    assert len(steps) == STEPS and "rollouts" not in steps[0]  # the share is 0 in the first step
    counted = {name: sum(row.get(name, 0) for row in steps) for name in ("rollouts", "rollout_matched")}
    assert 0 < counted["rollouts"] < STEPS * BATCH * ACCUMULATED * 2 and counted["rollout_matched"] > 0
    assert sum(row.get("rollout_false_positives", 0) for row in steps) > 0
    assert 0 < steps[-1]["rollout_time_share"] < 1 and steps[-1]["unlikelihood"] > 0

    killed = Path(shutil.copytree(tmp_path / "whole", tmp_path / "killed"))
    shutil.rmtree(killed / "adapter")
    (newest,) = killed.glob(f"checkpoints/*/checkpoint-{STEPS}")
    shutil.rmtree(newest)
    again, resumed = run(killed, data)
    assert any("lora_B" in name and weights[name].abs().max() > 0 for name in weights)
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in again)
    assert [row["loss"] for row in resumed if "loss" in row][-1] == steps[-1]["loss"]
