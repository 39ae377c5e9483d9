"""One process, several, or several machines train the same model. Machines are two torchrun agents on this one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from coordexp.runtime.errors import ConfigError
from coordexp.runtime.io import read_json
from coordexp.training import launch
from coordexp.training.launch import DistributedConfig

REPOSITORY = Path(__file__).resolve().parents[3]
STEPS = 3


def test_processes_follow_the_resources_of_the_job():
    assert DistributedConfig.from_resources(gpus=8, nodes=2, processes=1, threads=8) == DistributedConfig(
        4, 2, 8, gpus=4
    )
    assert DistributedConfig.from_resources(gpus=0, nodes=2, processes=2, threads=8) == DistributedConfig(2, 2, 8)
    assert DistributedConfig.from_resources(gpus=0, nodes=1, processes=4, threads=2).processes == 2
    with pytest.raises(ConfigError, match="3 GPUs cannot be divided evenly over 2 nodes"):
        DistributedConfig.from_resources(gpus=3, nodes=2, processes=1, threads=1)


@pytest.mark.parametrize(("gpus", "nodes", "processes"), [(1, 1, 8), (7, 1, 8), (8, 2, 8)])
def test_fewer_gpus_than_processes_are_an_error(gpus, nodes, processes):
    with pytest.raises(ConfigError) as caught:
        DistributedConfig.from_resources(gpus, nodes, processes, threads=8)
    text, fix = str(caught.value).split("\n")
    assert text.startswith("gpu: ") and text.endswith(f"; expected {nodes * processes}, found {gpus}")
    assert f"--resources gpu={nodes * processes}, or lower processes" in fix


def test_several_machines_need_a_rendezvous():
    two = DistributedConfig(nodes=2)
    assert launch._rendezvous(DistributedConfig(), {"NODE_RANK": "1"}) is None
    with pytest.raises(ConfigError, match="2 machines requested, but only this one is known"):
        launch._rendezvous(two, {})
    with pytest.raises(ConfigError, match="need all variables"):
        launch._rendezvous(two, {"NODE_RANK": "0", "MASTER_ADDR": "a"})
    with pytest.raises(ConfigError, match="need all variables"):
        launch._rendezvous(two, {"NODE_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", "NNODES": "3"})
    assert (
        launch._rendezvous(two, {"SLURM_JOB_ID": "5", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}) is None
    )


def write_recipe(folder, **training):
    """Full-parameter training with plain SGD, which does not amplify differences between gradients."""
    own = {"max_steps": STEPS, "save_steps": STEPS, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.05}
    recipe = {"training": {**own, **training}, "custom": {"object_ordering": "random"}}
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "own.yaml"


def start(folder, config, data, model, *options, **variables):
    """`coordexp train` in a new process group; the result is `folder`/adapter."""
    command = [sys.executable, "-m", "coordexp.cli", "train", "--config", str(config), "--model", str(model)]
    command += ["--base_config", str(REPOSITORY / "config/train/full_tiny.yaml"), *options]
    command += ["--train-jsonl", str(data / "train.coord.jsonl"), "--out", str(folder / "adapter")]
    where = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env={**os.environ, **variables}, cwd=folder, **where)


def output_of(process, code=0):
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == code, printed[-4000:]
    return printed


def log_lines(folder):
    return [line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.fixture(scope="module")
def alone(shapes_data, tiny_model, tmp_path_factory):
    """Folder of a run of one process with eight samples per step."""
    folder = tmp_path_factory.mktemp("alone")
    config = write_recipe(folder, per_device_train_batch_size=8)
    assert "adapter: full of step 3" in output_of(start(folder, config, shapes_data, tiny_model))
    return folder


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow
def test_two_machines_with_accumulation_train_and_log_the_same_as_one_process(alone, shapes_data, tiny_model, tmp_path):
    config = write_recipe(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    port = free_port()
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NNODES": "2"}
    second = start(tmp_path, config, shapes_data, tiny_model, NODE_RANK="1", **variables)
    first = start(tmp_path, config, shapes_data, tiny_model, NODE_RANK="0", **variables)
    assert "adapter: full of step 3" in output_of(first)
    assert "adapter: full" not in output_of(second)
    written = [read_json(folder / "adapter/train_manifest.json")["distributed"] for folder in (alone, tmp_path)]
    assert written == [{"processes": 1, "nodes": 1}, {"processes": 1, "nodes": 2}]

    one, two = (load_file(folder / "adapter/model.safetensors") for folder in (alone, tmp_path))
    start_from = load_file(tiny_model / "model.safetensors")
    assert one.keys() == two.keys()
    moved = max((one[name] - start_from[name].float()).abs().max().item() for name in one if name in start_from)
    apart = max((one[name] - two[name]).abs().max().item() for name in one)
    assert moved > 1e-3 and apart < 1e-4 * moved, (moved, apart)

    for mine, theirs in zip(log_lines(alone), log_lines(tmp_path), strict=True):
        expected = {"text", "ce", "soft_ce", "coord_mass", "l1", "giou", "coord_accuracy", "coord_probability"}
        assert expected | {"bin_error_median", "bin_error_p90", "loss", "grad_norm"} <= mine.keys() == theirs.keys()
        for name in mine.keys() - {"elapsed_time", "train_speed(s/it)", "remaining_time", "memory(GiB)"}:
            if isinstance(mine[name], float):
                assert theirs[name] == pytest.approx(mine[name], rel=2e-4, abs=1e-6), name


def the_group(command):
    """The whole process group, as a terminal, Snakemake or SLURM does."""
    os.killpg(command.pid, signal.SIGTERM)


def torchrun_alone(command):
    """torchrun's agent alone, which forwards it to the process group of each training process."""
    (agent,) = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    os.kill(int(agent), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("send_sigterm", [the_group, torchrun_alone])
def test_after_sigterm_all_processes_save_the_same_step_and_resume(shapes_data, tiny_model, tmp_path, send_sigterm):
    """No checkpoint is due before the signal, and each process has a loader worker."""
    steps = 16
    config = write_recipe(tmp_path, per_device_train_batch_size=4, save_steps=1000, max_steps=steps)
    running = start(tmp_path, config, shapes_data, tiny_model, "--processes", "2")
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("checkpoints/*/logging.jsonl")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    send_sigterm(running)
    printed = output_of(running, 2)
    assert ("exit code" if send_sigterm is torchrun_alone else "error: interrupted: saved at step ") in printed
    assert "Traceback" not in printed
    (saved,) = tmp_path.glob("checkpoints/*/checkpoint-*/COMPLETE")
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {file.name for file in saved.parent.iterdir()}
    step = int(saved.read_text())
    assert 0 < step < steps and not (tmp_path / "adapter").exists()
    assert torch.load(saved.parent / "scheduler.pt", weights_only=True)["last_epoch"] == step
    assert read_json(saved.parent / "trainer_state.json")["global_step"] == step
    printed = output_of(start(tmp_path, config, shapes_data, tiny_model, "--processes", "2"))
    assert f"resuming from {saved.parent}\n" in printed and f"adapter: full of step {steps}" in printed


@pytest.mark.slow
def test_a_run_waits_until_the_processes_of_a_killed_one_have_ended(shapes_data, tiny_model, tmp_path):
    """torchrun survives the command, and two training runs in one folder would corrupt each other's checkpoints."""
    config = write_recipe(tmp_path, per_device_train_batch_size=4, save_steps=1000, max_steps=8)
    first = start(tmp_path, config, shapes_data, tiny_model, "--processes", "2")
    while not list(tmp_path.glob("checkpoints/*/logging.jsonl")):
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    printed = output_of(start(tmp_path, config, shapes_data, tiny_model, "--processes", "2"))
    assert f"process {first.pid} on" in printed and "waiting for it to finish" in printed
    assert "full of step 8" in printed and "Train:" not in printed  # the orphan had finished it
    first.communicate()


def test_the_users_environment_takes_precedence_over_the_defaults_for_gpus(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(launch, "supervise", lambda command, env, *_: given.append(env) or (0, False))
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.delenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", raising=False)
    job = {
        "arguments": {},
        "custom": {"detection_eval": {"every": 0}, "rollout": {"share": 0.0}},
        "checkpoints": str(tmp_path),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    launch.launch(tmp_path / "job.json", DistributedConfig(1, 1, 1))
    assert given[0]["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"
    assert given[0]["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "1"
