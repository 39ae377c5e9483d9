"""DeepSpeed ZeRO-2 on two CPU processes trains, resumes, saves and merges as two processes without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

from coordexp.modeling.merge import merge

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.soak
REPOSITORY = Path(__file__).resolve().parents[3]
ON_A_CPU = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
TABLES = [f"base_model.model.coord_offset_adapter.{side}_offset" for side in ("embed", "head")]


def trained(folder, data, model, **training):
    """`coordexp train` by two processes with DoRA and offsets: log rows, adapter tensors and output."""
    folder.mkdir(exist_ok=True)
    own = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 2, "fp16": False}
    custom = {"coord_offset": {"tie_head": False}}
    custom["detection_eval"] = {"every": 4, "images": 2, "max_new_tokens": 16, "metric": "AP"}
    recipe = {"model": {"torch_dtype": "float32"}, "training": own | training, "custom": custom}
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe | {"data": {"dataloader_num_workers": 0}}))
    command = [sys.executable, "-m", "coordexp.cli", "train", "--processes", "2", "--model", model]
    command += ["--config", folder / "own.yaml", "--base_config", REPOSITORY / "config/train/sft_coord_offset.yaml"]
    command += ["--train-jsonl", data / "train.coord.jsonl", "--val-jsonl", data / "val.coord.jsonl"]
    command += ["--out", folder / "adapter"]
    done = subprocess.run(command, env=os.environ | ON_A_CPU, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows = [row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in row]
    return rows, load_file(folder / "adapter" / "adapter_model.safetensors"), done.stdout + done.stderr


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_zero_2_trains_resumes_and_merges_the_same_as_plain_processes(shapes_data, tiny_model, tmp_path):
    plain, expected, _ = trained(tmp_path / "plain", shapes_data, tiny_model)
    rows, found, printed = trained(tmp_path / "zero", shapes_data, tiny_model, deepspeed="zero2")
    assert "optimizer group head_offset: 1 tensors" in printed
    assert [row["step"] for row in plain] == [1, 2, 3, 4]
    for name in ("step", "loss", "ce", "text", "grad_norm"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in plain], rel=1e-5), name
    assert_close(found, expected)
    assert all(found[name].dtype == torch.float32 and (found[name] != 0).any() for name in TABLES)

    (last,) = (tmp_path / "zero" / "checkpoints").glob("*/checkpoint-4")
    assert list(last.glob("global_step4/*optim_states.pt"))  # it was ZeRO indeed
    shutil.rmtree(last)
    _, resumed, printed = trained(tmp_path / "zero", shapes_data, tiny_model, deepspeed="zero2")
    assert "resuming from" in printed
    assert_close(resumed, found)

    files = {folder: {file.name for file in (tmp_path / folder / "adapter").iterdir()} for folder in ("plain", "zero")}
    assert files["zero"] == files["plain"]
    manifest = merge(tiny_model, tmp_path / "zero" / "adapter", tmp_path / "merged")
    assert manifest["untied"] is True and manifest["applied"]["dora"] > 10
    adapted = PeftModel.from_pretrained(helpers.load(tiny_model), tmp_path / "zero" / "adapter").eval()
    inputs = helpers.batch(tiny_model)
    logits = helpers.logits(adapted, inputs)
    assert (helpers.logits(helpers.load(tmp_path / "merged"), inputs) - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_a_step_skipped_by_the_scaler_has_no_norm_in_the_log(shapes_data, tiny_model, tmp_path):
    """In fp16 the first loss scale is too large: its step overflows, and training continues with half of it."""
    rows, _, _ = trained(tmp_path / "fp16", shapes_data, tiny_model, deepspeed="zero2", fp16=True)
    assert "grad_norm" not in rows[0] and rows[-1]["grad_norm"] > 0
