"""Every model family, from its own classes with random weights: expanded, trained, interrupted, merged, predicted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import family_training
import modeling_helpers as helpers
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt
from coordexp.modeling.families import FAMILIES
from coordexp.modeling.merge import merge
from coordexp.training.checkpoints import complete_checkpoints

REPOSITORY = Path(__file__).resolve().parents[3]
SMALLER = {"expert_mlp": 24, "pad_rows": 3, "vocab_size": 400}


def command(folder: Path, data: Path, model: Path, steps: int = 4) -> list[str]:
    """`coordexp train` with a checkpoint every two steps: LoRA with offsets, also on any experts, otherwise DoRA."""
    experts = FAMILIES[json.loads((model / "config.json").read_text())["model_type"]].experts
    training = {"max_steps": steps, "save_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 1}
    recipe = {
        "model": {"torch_dtype": "float32"},
        "training": training | {"per_device_train_batch_size": 2, "bf16": False, "learning_rate": 1e-3},
        "tuner": {"use_dora": False, "target_parameters": ["all-experts"]} if experts else {},
        "custom": {"detection_eval": {"every": steps, "images": 2, "max_new_tokens": 16, "metric": "AP"}},
        "data": {"dataloader_num_workers": 0},
    }
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "coordexp.cli", "train", "--processes", "1", "--model", model]
    words += ["--config", folder / "own.yaml", "--base_config", REPOSITORY / "config/train/sft_coord_offset.yaml"]
    words += ["--train-jsonl", data / "train.coord.jsonl", "--val-jsonl", data / "val.coord.jsonl"]
    return [str(word) for word in [*words, "--out", folder / "adapter"]]


def trained(folder: Path, data: Path, model: Path) -> dict[str, torch.Tensor]:
    """The tensors of the trained adapter."""
    words = command(folder, data, model)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_every_family_is_trained_merged_and_predicted(shapes_data, tmp_path):
    runs = {}
    for family in FAMILIES.names():
        (tmp_path / family).mkdir()
        model = helpers.expanded(tmp_path / family, tie=True, family=family, **SMALLER)
        runs[family] = command(tmp_path / family / "run", shapes_data, model, steps=2)[3:]
    script = [sys.executable, family_training.__file__, json.dumps(list(runs.values()))]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    for family in runs:
        assert_predicts(family, tmp_path / family, steps=2)


def assert_predicts(family: str, folder: Path, steps: int) -> None:
    """All kinds of adapters have changed; every step is logged; the merged checkpoint answers."""
    tensors = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    changed = [name for name, t in tensors.items() if ("lora_B" in name or "offset" in name) and t.abs().max() > 0]
    expected = {"lora", "embed_offset"} | ({"mlp.experts"} if FAMILIES[family].experts else set())
    assert all(any(part in name for name in changed) for part in expected), family
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, steps + 1)), family
    assert any("eval_AP" in row for row in rows), f"{family}: detections are evaluated with the adapter in use"
    assert not list((folder / "run").rglob("*.png")), "ms-swift draws no figures"
    merge(folder / "expanded", folder / "run" / "adapter", folder / "merged")
    predictor = Predictor.from_checkpoint(folder / "merged", PredictOptions(max_new_tokens=24), PromptStyle())
    (answer,) = predictor.answer([Image.new("RGB", (96, 64), "white")], [Prompt()])
    assert answer.tokens and answer.finish in ("stop", "length"), family


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES.names())
def test_a_killed_training_resumes_to_the_same_bytes(family, shapes_data, tmp_path):
    model = helpers.expanded(tmp_path, tie=False, family=family, **SMALLER)
    expected = trained(tmp_path / "plain", shapes_data, model)
    words = command(tmp_path / "killed", shapes_data, model)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=tmp_path / "killed", stdout=log, stderr=log, start_new_session=True)
        checkpoints = tmp_path / "killed" / "checkpoints"
        while process.poll() is None and not any(map(complete_checkpoints, checkpoints.glob("*-*"))):
            time.sleep(0.05)
        assert process.poll() is None, "the training finished before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = trained(tmp_path / "killed", shapes_data, model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
