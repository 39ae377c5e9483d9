"""Detection during training chooses the checkpoint, disturbs nothing, and survives a kill."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from test_resume import REPOSITORY, start_and_kill

from coordexp.modeling.merge import resolve_checkpoint
from coordexp.recipe import load_recipe
from coordexp.training.launch import DistributedConfig
from coordexp.training.train import train

EVALUATION = {"every": 2, "metric": "AP", "images": 4, "max_new_tokens": 48}


def recipe(data, **detection_eval):
    """Six steps of LoRA with coordinate offsets and dropout; evaluated when the recipe says so."""
    overrides = {
        "model": {"torch_dtype": "float32"},
        "template": {"max_length": 2048},
        "tuner": {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.2},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": True,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "save_total_limit": 2,
            "logging_steps": 1,
        },
        "custom": {
            "train_jsonl": str(data / "train.coord.jsonl"),
            "val_jsonl": str(data / "val.coord.jsonl"),
            "object_ordering": "random",
            "detection_eval": {"every": 0, **detection_eval},
        },
    }
    return load_recipe(REPOSITORY / "config/train/sft_coord_offset.yaml", overrides)


def run(folder, recipe, model, **options):
    manifest = train(recipe, model, folder / "adapter", folder / "log.jsonl", **options)
    (checkpoints,) = (folder / "checkpoints").iterdir()
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return manifest, checkpoints, {row["step"]: row for row in rows if "eval_AP" in row}


@pytest.fixture(scope="module")
def watched(shapes_data, tiny_model, tmp_path_factory):
    return run(tmp_path_factory.mktemp("watched"), recipe(shapes_data, **EVALUATION), tiny_model)


def test_weights_are_those_of_a_run_without_evaluation(watched, shapes_data, tiny_model, tmp_path):
    _, plain, none = run(tmp_path, recipe(shapes_data), tiny_model)
    assert not none and list(watched[2]) == [2, 4, 6]
    ours, theirs = (load_file(folder / "checkpoint-6/adapter_model.safetensors") for folder in (watched[1], plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_survives_is_linked_and_published(watched, tmp_path):
    manifest, checkpoints, rows = watched
    best = max(rows, key=lambda step: (rows[step]["eval_AP"], step))
    assert manifest["step"] == best and manifest["checkpoint"] == f"checkpoint-{best}"
    assert manifest["best"] == {"metric": "AP", "value": rows[best]["eval_AP"], "last_step": 6}
    assert os.readlink(checkpoints / "best") == f"checkpoint-{best}"
    kept = {p.name for p in checkpoints.glob("checkpoint-*")}
    assert kept >= {f"checkpoint-{best}", "checkpoint-6"} and len(kept) == 2  # save_total_limit is 2
    assert resolve_checkpoint(checkpoints, best=True).name == f"checkpoint-{best}"
    published, own = (
        folder / "adapter_model.safetensors" for folder in (checkpoints.parents[1] / "adapter", checkpoints / "best")
    )
    assert published.read_bytes() == own.read_bytes()


def test_a_killed_run_goes_on_with_the_best_so_far(watched, shapes_data, tiny_model, tmp_path):
    made = f"recipe(data, **{EVALUATION})"
    whole = start_and_kill(tmp_path, shapes_data, tiny_model, signal.SIGKILL, module="test_best_checkpoint", made=made)
    assert whole and whole[-1] < 6
    manifest, _, rows = run(tmp_path, recipe(shapes_data, **EVALUATION), tiny_model)
    assert {k: v for k, v in manifest.items() if k != "recipe"} == {
        k: v for k, v in watched[0].items() if k != "recipe"
    }
    numbers = [
        {s: {k: r[k] for k in ("eval_AP", "eval_AP50", "eval_F1_micro")} for s, r in log.items()}
        for log in (rows, watched[2])
    ]
    assert numbers[0] == numbers[1]


def test_patience_ends_the_training_and_processes_share_the_images(watched, shapes_data, tiny_model, tmp_path):
    """An untrained model finds nothing at any step, so patience runs out, and the last evaluation is the best."""
    stopping = recipe(shapes_data, **EVALUATION, patience=1)
    assert watched[2][2]["eval_AP"] == watched[2][4]["eval_AP"] == 0
    for _ in ("trained", "published anew"):
        manifest, _, rows = run(tmp_path, stopping, tiny_model, distributed=DistributedConfig(processes=2, threads=2))
        assert list(rows) == [2, 4]
        assert manifest["step"] == manifest["best"]["last_step"] == 4
