"""A training that was killed continues at its last whole checkpoint and ends with the same weights; epochs differ."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coordexp.recipe import load_recipe
from coordexp.runtime.errors import ModelError
from coordexp.training.train import train

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 6
IMAGES = 24
BATCH = 12  # so that a killed run goes on in another epoch than it began in
# What loader workers draw, by epoch; they are forked from a process that has this in place.
WATCHED = """
import json, os, sys
from pathlib import Path
from coordexp.datasets.samples import Samples
from coordexp.training.ms_swift.worker import run

drawn, draw = os.open(sys.argv[2], os.O_APPEND | os.O_WRONLY | os.O_CREAT), Samples.get


def get(self, index, epoch):
    sample = draw(self, index, epoch)
    if os.getpid() != main:
        order = [obj.norm for obj in sample.record.objects]
        os.write(drawn, (json.dumps([index, epoch, order]) + "\\n").encode())
    return sample


main, Samples.get = os.getpid(), get
run(Path(sys.argv[1]))
"""

# Dies while the first old checkpoint is deleted.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from coordexp.training.ms_swift.worker import run

def rmtree(path, *_, **__):
    Path(path, "optimizer.pt").unlink()
    os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = rmtree
run(Path(sys.argv[1]))
"""


def recipe(data, **training):
    overrides = {
        "training": {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "save_steps": 2, "logging_steps": 1},
        "custom": {"train_jsonl": str(data / "train.coord.jsonl"), "object_ordering": "random"},
    }
    overrides["training"] |= training
    return load_recipe(REPOSITORY / "config/train/full_tiny.yaml", overrides)


def weights(folder):
    return load_file(folder / "model.safetensors")


WHOLE, STEPPED = "checkpoint-*/COMPLETE", "logging.jsonl"


def start_and_kill(folder, data, model, sign, module="test_resume", made="recipe(data)", once=WHOLE, **streams):
    """Train in a process group of its own; `sign` all of it once there is `once`; name the steps that stand then."""
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[4:]; "
        f"from {module} import recipe; from coordexp.training.train import train; "
        "data, model, folder = map(Path, sys.argv[1:4]); "
        f"train({made}, model, folder / 'adapter', folder / 'log.jsonl')"
    )
    command = [sys.executable, "-c", code, str(data), str(model), str(folder), str(Path(__file__).parent)]
    streams = streams or {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **streams)
    deadline = time.monotonic() + 240
    while not list(folder.glob(f"checkpoints/*/{once}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, sign)
    process.wait(120)
    return sorted(int(p.parent.name.split("-")[1]) for p in folder.glob("checkpoints/*/checkpoint-*/COMPLETE"))


@pytest.fixture(scope="module")
def finished_training(shapes_data, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(recipe(shapes_data), tiny_model, folder / "adapter", folder / "log.jsonl")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(finished_training):
    return weights(finished_training / "adapter")


def test_killed_and_run_again_is_the_same_training(uninterrupted, shapes_data, tiny_model, tmp_path, capfd):
    whole = start_and_kill(tmp_path, shapes_data, tiny_model, signal.SIGKILL)
    assert whole and whole[-1] < STEPS
    goes_on(tmp_path, whole[-1], recipe(shapes_data), tiny_model, uninterrupted, capfd)


@pytest.mark.parametrize(
    ("finished", "file"), [(True, "model.safetensors"), (False, "optimizer.pt"), (True, "trainer_state.json")]
)
def test_a_damaged_checkpoint_is_neither_published_nor_resumed(
    finished_training, shapes_data, tiny_model, tmp_path, finished, file
):
    folder = Path(shutil.copytree(finished_training, tmp_path / "training"))
    *_, newest = sorted(folder.glob("checkpoints/*/checkpoint-*"))
    if not finished:
        shutil.rmtree(newest)
        *_, newest = sorted(folder.glob("checkpoints/*/checkpoint-*"))
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{newest.name}/{file}: sha256: the file is damaged"):
        train(recipe(shapes_data), tiny_model, folder / "adapter", folder / "log.jsonl")


def test_preemption_saves_where_no_checkpoint_was_due(uninterrupted, shapes_data, tiny_model, tmp_path, capfd):
    """SIGTERM reaches every process of a job, the loader among them."""
    never, made = {"save_steps": 1000}, "recipe(data, save_steps=1000)"
    (saved,) = start_and_kill(tmp_path, shapes_data, tiny_model, signal.SIGTERM, made=made, once=STEPPED)
    assert 0 < saved < STEPS
    goes_on(tmp_path, saved, recipe(shapes_data, **never), tiny_model, uninterrupted, capfd)


def test_ctrl_c_saves_too_and_says_so(shapes_data, tiny_model, tmp_path):
    """Without a traceback in any process."""
    made, output = "recipe(data, save_steps=1000)", tmp_path / "output"
    with output.open("w") as out:
        (saved,) = start_and_kill(
            tmp_path, shapes_data, tiny_model, signal.SIGINT, made=made, once=STEPPED, stdout=out, stderr=out
        )
    printed = output.read_text()
    assert f"ModelError: interrupted: saved at step {saved}; run the same command again to continue" in printed
    assert "KeyboardInterrupt" not in printed and printed.count("Traceback") == 1  # of `train`, which no command caught


def goes_on(folder, step, recipe, model, uninterrupted, capfd):
    """Run again: from `step` to the weights of a run that nothing ended."""
    assert not (folder / "adapter").exists()
    manifest = train(recipe, model, folder / "adapter", folder / "log.jsonl")
    printed = capfd.readouterr().out
    assert "resuming from" in printed and f"checkpoint-{step}\n" in printed
    assert manifest["step"] == STEPS
    again = weights(folder / "adapter")
    assert again.keys() == uninterrupted.keys()
    assert all(torch.equal(again[name], uninterrupted[name]) for name in again)


def test_a_kill_while_an_old_checkpoint_is_deleted(uninterrupted, shapes_data, tiny_model, tmp_path, capfd):
    """The new one is whole before, and the old one counts no more."""
    kept = recipe(shapes_data, save_total_limit=1)

    def launch(job_file, layout):
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # sums are the same
        done = subprocess.run([sys.executable, "-c", KILLED, str(job_file)], env=alone, check=False)
        assert done.returncode == -signal.SIGKILL
        raise ModelError("killed")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError):
        patch.setattr("coordexp.training.train.launch", launch)
        patch.setattr("coordexp.training.train.remove_incomplete", lambda folder: None)
        train(kept, tiny_model, tmp_path / "adapter", tmp_path / "log.jsonl")
    assert len(list(tmp_path.glob("checkpoints/*/checkpoint-*"))) == 2
    (whole,) = tmp_path.glob("checkpoints/*/checkpoint-*/COMPLETE")
    assert whole.read_text() == "4\n"
    goes_on(tmp_path, 4, kept, tiny_model, uninterrupted, capfd)
    assert [p.name for p in tmp_path.glob("checkpoints/*/checkpoint-*")] == [f"checkpoint-{STEPS}"]


def test_every_epoch_is_drawn_anew(shapes_data, tiny_model, tmp_path, monkeypatch):
    """Three epochs: each shows every image once, and orders of objects change from one to the next."""
    file = tmp_path / "drawn.jsonl"

    def launch(job_file, layout):
        subprocess.run([sys.executable, "-c", WATCHED, str(job_file), str(file)], check=True)
        return True

    monkeypatch.setattr("coordexp.training.train.launch", launch)
    train(recipe(shapes_data), tiny_model, tmp_path / "adapter", tmp_path / "log.jsonl")
    drawn = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted((epoch, index) for index, epoch, _ in drawn) == [(e, i) for e in range(3) for i in range(IMAGES)]
    orders = {epoch: {index: order for index, e, order in drawn if e == epoch} for epoch in range(3)}
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_finished_training_is_published_again_and_another_recipe_starts_from_scratch(
    shapes_data, tiny_model, tmp_path, capfd
):
    """Killed after the last checkpoint, before or while its result was published: no step is repeated."""
    first = train(recipe(shapes_data, max_steps=2), tiny_model, tmp_path / "adapter", tmp_path / "log.jsonl")
    before = weights(tmp_path / "adapter")
    (tmp_path / "log.jsonl").unlink()
    capfd.readouterr()
    assert train(recipe(shapes_data, max_steps=2), tiny_model, tmp_path / "adapter", tmp_path / "log.jsonl") == first
    again = weights(tmp_path / "adapter")
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert len(list(tmp_path.glob("checkpoints/*/checkpoint-*"))) == 1 and "resuming" not in capfd.readouterr().out
    other = recipe(shapes_data, max_steps=2, learning_rate=1e-4)
    train(other, tiny_model, tmp_path / "adapter", tmp_path / "log.jsonl")
    printed = capfd.readouterr().out
    assert "starting from scratch" in printed and "resuming" not in printed
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
