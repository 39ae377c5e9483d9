"""GPUs of one machine: a fake driver's folder, real processes, and locks that the kernel lets go of."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordexp.runtime import gpus as devices
from coordexp.runtime.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
JOB = """
import os, subprocess, sys, time
from pathlib import Path
from coordexp.runtime import gpus as devices
devices.MACHINE, devices.LOCKS, devices.POLL_SECONDS = Path(sys.argv[1], "gpus"), Path(sys.argv[1]), 0.05
devices.take_gpus(int(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
command = sys.argv[3:] and [sys.executable, "-c", "input()"]
child = command and subprocess.Popen(command, close_fds=False, stdout=subprocess.DEVNULL)
sys.stdin.readline()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with a driver's `gpus`, of four, and the locks; what this process sees is that too."""
    for number in range(4):
        (tmp_path / "gpus" / f"0000:{number:02d}:00.0").mkdir(parents=True)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "MACHINE", tmp_path / "gpus")
    monkeypatch.setattr(devices, "LOCKS", tmp_path)
    return tmp_path


@pytest.fixture
def start(machine):
    """Starter of jobs that hold their GPUs until they are told to end, or are killed."""
    started = []

    def start(count, *arguments, **variables):
        where = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-c", JOB, str(machine), str(count), *arguments]
        started.append(subprocess.Popen(command, text=True, env={**os.environ, **variables}, cwd=machine, **where))
        return started[-1]

    yield start
    for job in started:
        job.kill()
        job.wait()
        job.stdin.close()


def seen(job):
    return job.stdout.readline().strip()


def end(job):
    job.communicate("\n", timeout=120)


def test_jobs_of_one_machine_get_devices_of_their_own(start):
    jobs = [start(1) for _ in range(4)]
    assert sorted(map(seen, jobs)) == ["0", "1", "2", "3"]


def test_a_job_waits_for_what_others_hold_and_says_who(start, machine):
    three, two = start(3), None
    assert seen(three) == "0,1,2"
    two = start(2)
    line = two.stderr.readline()
    assert line.startswith("waiting for 2 of 4 GPUs; held") and "GPU 3" not in line
    assert f"GPU 0 by process {three.pid} in {machine}" in line
    one = start(1)
    assert seen(one) == "3", "what waits holds nothing"
    end(three)
    assert seen(two) == "0,1"


def test_jobs_that_want_all_never_hold_parts_against_each_other(start):
    jobs = [start(4) for _ in range(3)]
    for job in jobs:
        job.stdin.write("\n")
        job.stdin.flush()
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    assert [seen(job) for job in jobs] == ["0,1,2,3"] * 3


def test_a_killed_job_lets_go_when_the_last_of_its_children_ends(start):
    holder = start(4, "with a child")
    assert seen(holder) == "0,1,2,3"
    waiting = start(1)
    assert waiting.stderr.readline()
    holder.kill()
    holder.wait()
    time.sleep(0.5)
    assert waiting.poll() is None, "the child holds them"
    holder.stdin.close()
    assert seen(waiting) == "0"


def test_what_is_visible_is_shared_out_by_its_own_names(start):
    visible = "2, GPU-ab,MIG-c,-1,3"
    assert seen(start(2, CUDA_VISIBLE_DEVICES=visible)) == "2,GPU-ab"
    assert seen(start(1, CUDA_VISIBLE_DEVICES=visible)) == "MIG-c"
    assert sorted(seen(start(1)) for _ in range(3)) == ["0", "1", "3"], "2 is the same device"


def test_jobs_of_slurm_that_number_their_own_devices_do_not_wait_for_each_other(start):
    jobs = [start(1, CUDA_VISIBLE_DEVICES="0,1", SLURM_JOB_ID=job) for job in ("7", "7", "8")]
    assert sorted(map(seen, jobs)) == ["0", "0", "1"]


@pytest.mark.parametrize("visible", ["5", "GPU-ab"])
def test_what_a_scheduler_gave_stays_as_it_is(machine, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices.take_gpus(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible and not list(machine.glob("*.lock"))


@pytest.mark.parametrize("visible", [None, "0,1"])
def test_a_job_without_gpus_sees_none_and_locks_none(machine, monkeypatch, visible):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    devices.take_gpus(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not list(machine.glob("*.lock"))


@pytest.mark.parametrize(("visible", "found"), [("0,1", "['0', '1']"), ("", "[]"), ("NoDevFiles", "[]")])
def test_fewer_than_granted_is_an_error(machine, monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError) as caught:
        devices.take_gpus(3)
    assert "gpu: fewer GPUs than granted; expected 3, found " + found in str(caught.value)
    assert "--resources gpu=N" in str(caught.value)


def test_a_machine_without_the_driver_has_none(machine, monkeypatch):
    monkeypatch.setattr(devices, "MACHINE", machine / "absent")
    assert devices.visible_gpus() == []


def test_every_user_of_the_machine_may_hold_the_locks(start, machine):
    umask = os.umask(0o077)
    try:
        assert seen(start(1)) == "0"
    finally:
        os.umask(umask)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in machine.glob("*.lock")}
    assert modes == {0o666}


FILES = {
    "train": ("--base", "--train", "--val", "--source", "--log", "--messages", "--trained"),
    "predict": ("--records", "--source", "--model", "--predictions"),
}


@pytest.mark.parametrize("rule", FILES)
def test_the_scripts_of_the_rules_ask_for_what_was_granted(rule, tmp_path):
    files = [word for name in FILES[rule] for word in (name, str(tmp_path / "folder" / name.strip("-")))]
    numbers = {"train": "--nodes 1 --made-from 0 --rerun-on-code-change False", "predict": "--shard 1 --shards 1"}[
        rule
    ].split()
    command = [
        sys.executable,
        "-m",
        f"workflow_scripts.{rule}",
        "--config",
        json.dumps({"processes": 3, "options": {}}),
        *files,
    ]
    command += [*numbers, "--threads", "1", "--gpus", "3"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "expected 3, found ['0', '1']" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.endswith("| torch")], "CUDA may have started"
