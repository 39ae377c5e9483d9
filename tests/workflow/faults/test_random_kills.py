"""The whole workflow, killed at random moments and started again, ends with the files of an undisturbed run.

`KILLS` in the environment is the number of kills and `KILL_SEED` the seed of their moments, which is printed.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from scene import CHANGES, RUN, Scene, contents

from coordexp.runtime.io import sha256_file

KILLS = int(os.environ.get("KILLS", "30"))
SEED = int(os.environ.get("KILL_SEED", time.time_ns() % 1_000_000))
# Without calibration: a model of four steps finds nothing to fit it on.
CHANGED = {name: value for name, value in CHANGES.items() if name not in ("calibrate", "sweeps")}
TARGETS = (f"{RUN}/eval.json", f"{RUN}/report.html")
COMPARED = (*("eval.json", "report.html", "data", "eval", "merged", "train/adapter", "train/log.jsonl"),)
NAMES = (*(f"{RUN}/{name}" for name in COMPARED), "results/models", "resources")
pytestmark = pytest.mark.soak


def all_files(folder):
    files = contents(folder, NAMES)
    assert {*TARGETS, f"{RUN}/train/adapter/train_manifest.json"} <= files.keys()
    log, page = sha256_file(folder / RUN / "train/log.jsonl"), f"{RUN}/report.html"
    assert log.encode() in files[page]
    return {**files, page: files[page].replace(log.encode(), b"LOG")}  # the log has wall-clock times


def differing(one, other):
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def start_over(folder):
    for name in ("results", "resources", ".snakemake"):
        shutil.rmtree(folder / name)


def test_random_kills(tmp_path, repository, capsys):
    def say(text):
        with capsys.disabled():
            print(text, flush=True)

    scene = Scene(tmp_path / "run", repository, CHANGED)  # the same folder, as manifests contain its path
    started = time.monotonic()
    code, text = scene.run(*TARGETS)
    assert code == 0, text
    duration, expected = time.monotonic() - started, all_files(scene.folder)
    start_over(scene.folder)
    moments = random.Random(SEED)
    say(f"\nseed {SEED}: {KILLS} kills; the undisturbed run took {duration:.0f} s")
    kills = finished = 0
    while kills < KILLS:
        process, delay = scene.start(*TARGETS), moments.uniform(0.5, duration / 3)
        try:
            assert process.wait(delay) == 0, scene.log.read_text()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            say(f"kill {kills} after {delay:.2f} s")
            code, text = scene.run("--unlock")
            assert code == 0, text
            continue
        finished += 1
        assert not differing(all_files(scene.folder), expected)
        start_over(scene.folder)
    code, text = scene.run(*TARGETS)
    assert code == 0, text
    assert not differing(all_files(scene.folder), expected)
    say(f"{kills} kills, {finished + 1} complete runs, all identical")
