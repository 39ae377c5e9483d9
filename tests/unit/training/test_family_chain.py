"""Every model family, from its own classes with random weights: expanded, trained, interrupted, merged, predicted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def command(folder: Path, data: Path, model: Path) -> list[str]:
    """`coordexp train` for four steps: LoRA with offsets, on the experts if there are any, otherwise DoRA."""
    experts = FAMILIES[json.loads((model / "config.json").read_text())["model_type"]].experts
    training = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 1}
    recipe = {
        "model": {"torch_dtype": "float32"},
        "training": training | {"per_device_train_batch_size": 2, "bf16": False, "learning_rate": 1e-3},
        "tuner": {"use_dora": False, "target_parameters": ["all-experts"]} if experts else {},
        "custom": {"detection_eval": {"every": 4, "images": 2, "max_new_tokens": 16, "metric": "AP"}},
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


# In CI only the mixture of experts with linear attention, which contains what each of the others has.
FULL = [pytest.param(name, marks=[] if name == "qwen3_5_moe" else pytest.mark.soak) for name in FAMILIES.names()]


@pytest.mark.parametrize("family", FULL)
def test_a_family_is_trained_merged_and_predicted(family, shapes_data, tmp_path):
    model = helpers.expanded(tmp_path, tie=True, family=family, **SMALLER)
    tensors = trained(tmp_path / "run", shapes_data, model)
    changed = [name for name, t in tensors.items() if ("lora_B" in name or "offset" in name) and t.abs().max() > 0]
    expected = {"lora", "embed_offset"} | ({"mlp.experts"} if FAMILIES[family].experts else set())
    assert all(any(part in name for name in changed) for part in expected)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert any("eval_AP" in row for row in rows), "detections are evaluated with the adapter in place"
    merge(model, tmp_path / "run" / "adapter", tmp_path / "merged")
    predictor = Predictor.from_checkpoint(tmp_path / "merged", PredictOptions(max_new_tokens=24), PromptStyle())
    image = Image.new("RGB", (96, 64), "white")
    (answer,) = predictor.answer([image], [Prompt()])
    assert answer.tokens and answer.finish in ("stop", "length")


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
