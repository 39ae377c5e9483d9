"""The demo as SLURM jobs by the shipped profile, to its end, while jobs are cancelled, requeued and nodes drained."""

import copy
import json
import re

import pytest
from submitting import Run

from coordexp.runtime.io import read_json

RUN = "results/shapes_9"
CHANGES = {
    "data": {"tiny": 4, "num_workers": 1},
    "datasets": {"shapes": {"splits": {"train": {"count": 24, "seed": 1}, "val": {"count": 6, "seed": 2}}}},
    "runs": {
        "shapes": {
            "train": {"processes": 1},
            "recipe": {
                "training": {"max_steps": 10, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1}
            },
        }
    },
    "train": {"threads": 2},
    "predict": {"max_new_tokens": 96, "shards": 3},
    "evaluate": {"bootstrap": 10},
    "report": {"gallery": 4},
}
# `--set-resources` takes the place of the profile's whole list, so the partitions are said again; the tiny model asks
# for no GPU by itself.
GPU = [f"{rule}:{ask}" for rule in ("train", "predict") for ask in ("slurm_partition=gpu", "gpu=1")]
# The lines of the profile for training on several machines, as in docs/cluster.md; a stand-in GPU on each.
LINES = ("slurm_partition=gpu", "mpi=srun", "tasks=2", "tasks_per_gpu=0", "slurm_extra='--gpus-per-node=1'", "gpu=2")
NODES = [f"train:{line}" for line in LINES]
CORES = ("--set-threads", "expand_vocab=1", "merge=1")


class Story:
    """What was done to the run on the way, and what was seen."""

    drained = cancelled = requeued = lost_shard = ""
    checkpoint = ""
    devices: set[str]


def whole_checkpoints(run: Run) -> list[str]:
    """Names of the training's whole checkpoints, the latest last."""
    found = {int(file.parent.name.split("-")[1]) for file in run.path(f"{RUN}/train").rglob("COMPLETE")}
    return [f"checkpoint-{step}" for step in sorted(found)]


def running(run: Run, rule: str, other_than: str = "") -> dict[str, str] | None:
    """The running SLURM job of a rule."""
    jobs = [job for job in run.jobs(f"rule_{rule}") if job["JobState"] == "RUNNING" and job["JobId"] != other_than]
    return jobs[-1] if jobs else None


def interfere(run: Run, cluster) -> Story:
    """One node drained, the training cancelled there and moved, and then requeued by the controller."""
    story = Story()
    cluster.call("scontrol", "update", "NodeName=two", "State=DRAIN", "Reason=maintenance")
    story.drained = cluster.call("sinfo", "-h", "-n", "two", "-p", "gpu", "-o", "%t")
    train = run.until(lambda: running(run, "train"), "a running train job")
    run.until(lambda: whole_checkpoints(run), "a first checkpoint")
    story.devices = {env.get("CUDA_VISIBLE_DEVICES", "") for env in run.environments(train["JobId"])}
    story.cancelled = train["JobId"]
    cluster.call("scontrol", "update", "NodeName=two", "State=RESUME")
    cluster.call("scontrol", "update", "NodeName=one", "State=DRAIN", "Reason=maintenance")
    cluster.call("scancel", train["JobId"])
    again = run.until(lambda: running(run, "train", other_than=train["JobId"]), "a second train job")
    story.checkpoint = whole_checkpoints(run)[-1]
    run.until(lambda: whole_checkpoints(run)[-1] != story.checkpoint, "a later checkpoint")
    story.requeued = again["JobId"]
    cluster.call("scontrol", "update", "NodeName=one", "State=RESUME")
    cluster.call("scontrol", "requeue", again["JobId"])
    shard = run.until(lambda: running(run, "predict"), "a running shard of the prediction")
    story.lost_shard = shard["JobId"]
    cluster.call("scancel", f"{shard['ArrayJobId']}_{shard['ArrayTaskId']}")
    return story


@pytest.fixture(scope="module")
def demo(cluster, tmp_path_factory):
    """(run, story): the whole demo on SLURM, with the interference."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ("--set-resources", *GPU, *CORES, "--", f"{RUN}/eval.json", f"{RUN}/report.html")
    run = Run(cluster, folder, CHANGES, *arguments)
    try:
        story = interfere(run, cluster)
        run.finish()
        yield run, story
    finally:
        run.stop()


def test_the_run_ends_with_its_numbers(demo):
    run, _ = demo
    assert read_json(run.path(f"{RUN}/eval.json"))["counts"]["images"] == 6
    assert run.path(f"{RUN}/report.html").stat().st_size > 10_000
    predictions = [json.loads(line) for line in run.path(f"{RUN}/eval/predictions.jsonl").read_text().splitlines()]
    assert len({row["image_id"] for row in predictions}) == 6


def test_nothing_starts_on_a_drained_node(demo):
    run, story = demo
    assert story.drained in ("drain", "drng")
    [cancelled] = [job for job in run.jobs() if job["JobId"] == story.cancelled]
    before = [job for job in run.jobs() if int(job["JobId"]) <= int(story.cancelled)]
    assert len(before) >= 7 and {job["NodeList"] for job in before} == {"one"}
    assert cancelled["JobState"] == "CANCELLED"


def test_a_cancelled_training_is_submitted_again_with_more_memory(demo):
    run, story = demo
    jobs = run.jobs("rule_train")
    assert [job["JobId"] for job in jobs] == [story.cancelled, story.requeued]
    assert [job["MinMemoryNode"] for job in jobs] == ["4000M", "6000M"]
    assert "1 of 2" in run.text() or "Trying to restart job" in run.text()


def test_a_requeued_job_is_the_same_job_and_ends_well(demo):
    run, story = demo
    [requeued] = [job for job in run.jobs() if job["JobId"] == story.requeued]
    assert requeued["Requeue"] == "1" and int(requeued["Restarts"]) >= 1 and requeued["JobState"] == "COMPLETED"


def test_training_goes_on_at_its_last_whole_checkpoint(demo):
    run, story = demo
    [resumed] = re.findall(r"resuming from \S*(checkpoint-\d+)", run.path(f"{RUN}/logs/train.log").read_text())
    assert int(resumed.split("-")[1]) > int(story.checkpoint.split("-")[1])
    steps = [json.loads(line).get("step") for line in run.path(f"{RUN}/train/log.jsonl").read_text().splitlines()]
    assert steps[-1] == 10 and sorted(set(steps)) == list(range(1, 11))


def test_a_gpu_is_asked_for_and_seen_by_the_training(demo):
    run, story = demo
    assert story.devices == {"0"}
    for job in run.jobs():
        asks = "gres/gpu=1" in job["TRES"] or "gpu" in job.get("TresPerJob", "")
        assert asks == bool(re.match(r"rule_(train|predict)", job["Comment"])), job


def test_every_rule_goes_to_its_partition(demo):
    run, _ = demo
    for job in run.jobs():
        expected = "gpu" if re.match(r"rule_(train|predict)", job["Comment"]) else "cpu"
        assert job["Partition"] == expected and job["Requeue"] == "1", job


def test_shards_of_a_prediction_are_one_array_and_a_lost_one_comes_back_alone(demo):
    run, story = demo
    *shards, again = run.jobs("rule_predict")
    assert sorted(job["ArrayTaskId"] for job in shards) == ["1", "2", "3"]
    assert len({job["ArrayJobId"] for job in shards}) == 1
    assert [job["JobId"] for job in shards if job["JobState"] == "CANCELLED"] == [story.lost_shard]
    assert again["JobState"] == "COMPLETED" and again["MinMemoryNode"] == "6000M" and "ArrayJobId" not in again


def test_small_rules_share_a_job(demo):
    run, _ = demo
    assert len(run.jobs("tokens")) == 2 and len(run.jobs("numbers")) == 1
    done = {"coord_tokenize", "tiny_split", "evaluate", "report", "gather"}
    assert not any(re.match(f"rule_({'|'.join(done)})", job["Comment"]) for job in run.jobs())


@pytest.fixture(scope="module")
def two_nodes(cluster, demo):
    """(run, environments): the same training again on both nodes, and what its processes found there."""
    changes = copy.deepcopy(CHANGES)
    changes["runs"]["shapes"]["train"]["nodes"] = 2
    arguments = ("--set-resources", *NODES, "--", f"{RUN}/train/adapter/train_manifest.json")
    # The nodes have names that no resolver knows; an exported address wins over that of the first node.
    run = Run(cluster, demo[0].folder, changes, *arguments, name="nodes", MASTER_ADDR="127.0.0.1")
    try:
        train = run.until(lambda: running(run, "train"), "a running train job")
        environments = run.until(lambda: workers(run, train["JobId"], 2), "a training process on each node")
        run.finish()
        yield run, environments
    finally:
        run.stop()


def workers(run: Run, job: str, count: int) -> list[dict[str, str]]:
    """Environments of the processes that torchrun started, once there are as many."""
    found = [env for env in run.environments(job) if "LOCAL_RANK" in env]
    return found if len({env["RANK"] for env in found}) == count else []


@pytest.mark.soak
def test_a_training_on_two_nodes_is_one_job_with_a_process_on_each(two_nodes):
    run, environments = two_nodes
    [job] = run.jobs("rule_train")
    assert job["NumNodes"] == "2" and job["TresPerJob"] == "gres:gpu:2" and job["JobState"] == "COMPLETED"
    assert {env["SLURMD_NODENAME"] for env in environments} == {"one", "two"}
    assert {(env["RANK"], env["WORLD_SIZE"]) for env in environments} == {("0", "2"), ("1", "2")}


@pytest.mark.soak
def test_two_nodes_end_with_one_result(two_nodes):
    run, _ = two_nodes
    assert read_json(run.path(f"{RUN}/train/adapter/train_manifest.json"))["step"] == 10
    steps = [json.loads(line).get("step") for line in run.path(f"{RUN}/train/log.jsonl").read_text().splitlines()]
    assert steps[-1] == 10
