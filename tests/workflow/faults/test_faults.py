"""Every rule under every fault: nothing half-written counts as whole, the documented command ends as if undisturbed."""

import json
import os
import signal
from fnmatch import fnmatch

import pytest
from case import Case
from running import answer
from scene import BESIDE, CHILD, OTHER, PLAN, REPOSITORY, RUN, Scene, interrupt, jobs, stop

OUTPUTS = jobs()
QUICK = ("convert_resize",)  # its faults run in CI, those of the others by `make soak`
LIGHT = {
    "download",
    "convert_resize",
    "coord_tokenize",
    "tiny_split",
    "calibration_split",
    "gather",
    "calibrate",
    "curves",
}
LIGHT |= {"compare", "leaderboard", "sweep_summary"}
CALIBRATED = ("gather", "calibrate", "evaluate", "report", "compare", "leaderboard", "sweep_summary")
TRIALS = tuple(f"results/sweeps/decoding/{decode}-seed1" for decode in ("argmax", "local"))
# Where more is known than the number of a write: training stops while it writes its second checkpoint.
MOMENT = {"train": {"path": "*/checkpoint-4/*"}}
UNREAD = ("train/loss.png",)  # the page asks for it so that Snakemake's own report has both
REMADE = ("coord_tokenize", "tiny_split")  # rules whose broken inputs are cheap to make again
RULES = [pytest.param(rule, marks=() if rule in QUICK else pytest.mark.soak) for rule in OUTPUTS]

_undisturbed: dict[str, dict] = {}


@pytest.fixture
def case(whole, tmp_path):
    """Makes cases of a rule; the undisturbed run is built up to it first, and tells its writes and its CPU seconds."""

    def make(rule):
        entry = CHILD.get(rule, f"workflow_scripts.{rule}")
        if rule not in _undisturbed:
            if rule in CALIBRATED:
                answer_held_out(
                    whole,
                    {"compare": (RUN, OTHER), "leaderboard": (RUN, OTHER), "sweep_summary": TRIALS}.get(rule, (RUN,)),
                )
            code, text = whole.run(*OUTPUTS[rule], "--forcerun", rule)
            assert code == 0, text
            facts = [json.loads(line) for line in whole.trace.read_text().splitlines()]
            own = [fact for fact in facts if fact["entry"] == entry]
            last = max(fact["count"] for fact in own if fact.get("event") == "os.rename")
            usual = whole.spent(whole.trace, own[-1]["pid"], f"workflow_scripts.{rule}")
            _undisturbed[rule] = {"usual": usual, "last": last}
        names = (*OUTPUTS[rule], *BESIDE.get(rule, ()))
        return Case(whole, tmp_path / "case", OUTPUTS[rule], names, entry, **_undisturbed[rule])

    yield make
    for process in list(Scene.started):
        stop(process)


def answer_held_out(whole, runs):
    """Answers made from the truth: those of a model of four steps are never right, so nothing can be learnt of them."""
    for seed, run in enumerate(runs):
        shard = f"{run}/calibration/shards/1-of-1.jsonl"
        if not (whole.folder / shard).exists():
            code, text = whole.run(shard)
            assert code == 0, text
            answer(whole.folder, f"{RUN if run in TRIALS else run}/data/calibration.jsonl", shard, seed)


def publishing(rule, one):
    """The moment before a rule's last file appears."""
    return MOMENT.get(rule, {"moment": one.last})


def moments(rule, one):
    """When a rule is disturbed: as it begins to write, before its last file appears, and when all of them have."""
    last = publishing(rule, one)
    return [{"moment": 1}, last, {"moment": -1}] if rule in LIGHT else [last]


@pytest.mark.parametrize("rule", RULES)
def test_job_killed(rule, case, cell):
    """Killed again and again at another moment, then left alone."""
    one = case(rule)
    for when in moments(rule, one):
        code, _ = one.run(do="kill", entry=one.entry, **when)
        assert code != 0 and '"what": "kill"' in one.traces[-1].read_text()
        one.check_nothing_is_half_written()
    one.check_the_same_command_ends_well()
    cell["lost_seconds"] = one.lost() / len(moments(rule, one))


@pytest.mark.parametrize("rule", RULES)
def test_snakemake_killed(rule, case, cell):
    """The job goes on as an orphan; that of the next Snakemake waits for it instead of writing beside it."""
    one = case(rule)
    process = one.held(publishing(rule, one))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    one.take_over(one.scene.release)
    cell["lost_seconds"] = one.lost()


@pytest.mark.parametrize("rule", RULES)
def test_ctrl_c(rule, case, cell):
    one = case(rule)
    process = one.held(publishing(rule, one))
    interrupt(process, one.scene.release if rule in CHILD else None)  # training saves a checkpoint first
    one.check_nothing_is_half_written()
    one.check_the_same_command_ends_well()
    cell["lost_seconds"] = one.lost()


@pytest.mark.parametrize("rule", RULES)
def test_disk_full(rule, small_disk, case, cell):
    one = case(rule)
    process = one.held(MOMENT.get(rule, {"moment": 1}))
    one.check_a_full_disk(process, small_disk, one.scene.release)
    cell["lost_seconds"] = one.lost()


@pytest.mark.parametrize("rule", RULES)
def test_input_cut_off(rule, case, cell):
    """Each declared file that a rule reads, cut off in the middle of a line: named, and nothing is written."""
    one = case(rule)
    inputs = sorted(PLAN[(rule, *one.outputs)].inputs, key=lambda name: -(one.scene.folder / name).stat().st_size)
    if not inputs:
        pytest.skip("the rule has no input")
    inputs = [name for name in inputs if not name.endswith(UNREAD)]
    for name in inputs if rule in LIGHT else inputs[:1]:
        path = one.scene.folder / name
        data, times = path.read_bytes(), path.stat()
        path.write_bytes(data[: len(data) // 2].rstrip(b"\n"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        code, text = one.run()
        assert code != 0, f"{name} was taken for whole"
        assert "WorkflowFailed:" in text and path.name in text.split("WorkflowFailed:", 1)[1], text
        assert not any((one.scene.folder / output).exists() for output in one.outputs)
        if rule in REMADE:
            path.unlink()  # the documented way
            continue
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    one.check_the_same_command_ends_well()


def test_broken_image_of_a_source(case):
    one = case("convert_resize")
    image = next((one.scene.folder / "resources/shapes/raw/images/val").glob("*.png"))
    image.write_bytes(image.read_bytes()[:40])
    code, text = one.run()
    assert code != 0 and str(image.relative_to(one.scene.folder)) in text
    assert not any((one.scene.folder / output).exists() for output in one.outputs)
    image.unlink()
    (one.scene.folder / "resources/shapes/val.source.json").unlink()
    one.check_the_same_command_ends_well()


@pytest.mark.parametrize("rule", RULES)
def test_two_at_once(rule, case, cell):
    one = case(rule)
    process = one.held({"moment": 1} if rule not in CHILD else MOMENT[rule])
    log = one.scene.log
    code, text = one.scene.run(*one.outputs)
    assert code != 0 and "LockException" in text
    one.scene.release()
    assert process.wait(900) == 0, log.read_text()
    one.check_result()
    cell["lost_seconds"] = one.lost()


def test_every_rule_that_runs_code_is_here():
    rules = {path.stem for path in (REPOSITORY / "workflow_scripts").glob("*.py")} - {"__init__", "arguments"}
    rules -= {"convert_shard"}  # the code of convert_resize, for runs with data.shards
    assert set(OUTPUTS) == rules
    assert not [name for name in (*BESIDE, *CHILD, *MOMENT, *LIGHT) if name not in OUTPUTS]
    assert not fnmatch("checkpoint-2/x", MOMENT["train"]["path"])
