"""One training over two nodes of SLURM, submitted by the shipped profile with the lines of docs/cluster.md."""

from submitting import Run
from test_demo import CHANGES, CORES

from coordexp.io import read_json
from coordexp.recipe import merge

TRAINED = "results/shapes_9/train/adapter/train_manifest.json"
TWO = {"runs": {"shapes": {"nodes": 2, "training": {"max_steps": 3, "save_steps": 3}}}}
LINES = [f"train:{line}" for line in ("slurm_partition=cpu", "mpi=srun", "tasks=2", "tasks_per_gpu=0")]


def test_two_nodes_train_together(cluster, tmp_path, monkeypatch):
    monkeypatch.setitem(cluster.env, "MASTER_ADDR", "127.0.0.1")  # the nodes' names are known to this SLURM alone
    changes = merge(CHANGES, TWO)
    run = Run(cluster, tmp_path, changes, "--set-resources", *LINES, *CORES, "--", TRAINED)
    try:
        run.finish()
    finally:
        run.stop()
    (job,) = run.jobs("rule_train")
    assert job["NumNodes"] == "2" and job["JobState"] == "COMPLETED"
    log = run.path("results/shapes_9/logs/train.log").read_text()
    assert all(f"rank: {rank}, local_rank: 0, world_size: 2, local_world_size: 1" in log for rank in (0, 1))
    manifest = read_json(run.path(TRAINED))
    assert manifest["step"] == 3
