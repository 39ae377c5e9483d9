"""Start the training processes: one, several under torchrun, several machines in a SLURM job or by hand.

Machines find each other by ms-swift's variables, which are torchrun's: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
In a SLURM job one call starts an agent on every node, which derives them from SLURM's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from coordexp.runtime.errors import ConfigError, ModelError, located

WORKER = ["-m", "coordexp.training.ms_swift.worker"]
SHUTDOWN_SECONDS = 600  # a step and its checkpoint after SIGTERM; torchrun's own 30 s would cut it off
VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# What a step of a SLURM job may know of the job; the rest would be taken for options of the inner srun.
OF_THE_JOB = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR")


class DistributedConfig(msgspec.Struct, frozen=True):
    """processes: on each machine, one a GPU. nodes: machines. threads: CPU threads of a machine, shared by its
    processes. gpus: on each machine, to ask SLURM for."""

    processes: int = 1
    nodes: int = 1
    threads: int = 1
    gpus: int = 0

    @classmethod
    def of(cls, gpus: int, nodes: int, processes: int, threads: int) -> DistributedConfig:
        """From the resources of a job: a process a GPU (of all machines together); without GPUs `processes` a machine.

        On a CPU there are never more processes than threads. ConfigError for fewer GPUs than processes: a step of
        fewer processes has fewer images.
        """
        if not gpus:
            return cls(max(min(processes, threads), 1), nodes, threads)
        if gpus < (world := processes * nodes):
            fix = f"add --resources gpu={world}, or lower processes"
            raise ConfigError(located("fewer GPUs than processes", field="gpu", expected=world, found=gpus, fix=fix))
        if gpus % nodes:
            fix = "make gpu a multiple of nodes"
            raise ConfigError(located(f"{gpus} GPUs do not spread evenly over {nodes} nodes", field="gpu", fix=fix))
        return cls(gpus // nodes, nodes, threads, gpus // nodes)

    @property
    def world_size(self) -> int:
        """Processes of all machines together."""
        return self.processes * self.nodes

    @property
    def share(self) -> int:
        """CPU threads of each process."""
        return max(self.threads // self.processes, 1)


def launch(job_file: Path, distributed: DistributedConfig) -> bool:
    """Train by `job_file`; whether this machine is the one that publishes. ModelError when training fails."""
    env = {**os.environ, **_threads(distributed)}
    place = _place(distributed, env)
    if distributed.nodes == 1:
        command = [
            sys.executable,
            *(_runner(distributed, env) if distributed.processes > 1 else []),
            *WORKER,
            str(job_file),
        ]
    elif place is not None:
        env |= place
        command = [sys.executable, *_runner(distributed, env), *WORKER, str(job_file)]
    else:
        command, env = _one_agent_a_node(job_file, distributed, env)
    code = _wait(command, env)
    if code:
        fix = "see above; run again to continue at the last whole checkpoint"
        raise ModelError(f"training ended with exit code {code}\n  -> {fix}")
    return place is None or place["NODE_RANK"] == "0"


def _place(distributed: DistributedConfig, env: Mapping[str, str]) -> dict[str, str] | None:
    """ms-swift's variables of this machine; None when there is one machine, or all are to be started from here."""
    if distributed.nodes == 1:
        return None
    if "NODE_RANK" in env:
        missing = [name for name in VARIABLES if name not in env and name != "NNODES"]
        if missing or int(env.get("NNODES", distributed.nodes)) != distributed.nodes:
            found = {name: env.get(name) for name in VARIABLES}
            fix = "export them alike on every machine, with NODE_RANK from 0"
            raise ConfigError(
                located(f"{distributed.nodes} nodes need all variables", field="NNODES", found=found, fix=fix)
            )
        return {"NNODES": str(distributed.nodes), **{name: env[name] for name in VARIABLES if name in env}}
    if env.get("SLURM_STEP_NUM_TASKS") == env.get("SLURM_STEP_NUM_NODES") == str(distributed.nodes):
        return slurm_place(env)
    if "SLURM_JOB_ID" in env:
        return None
    fix = "start it in a SLURM job, or on every machine with NODE_RANK, MASTER_ADDR and MASTER_PORT exported"
    raise ConfigError(located(f"asked for {distributed.nodes} machines, but this is one", field="nodes", fix=fix))


def slurm_place(env: Mapping[str, str]) -> dict[str, str]:
    """ms-swift's variables of one task of an `srun` with a task a node; those that are set already win."""
    listed = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
    first = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[0]
    derived = {
        "NNODES": env["SLURM_STEP_NUM_NODES"],
        "NODE_RANK": env["SLURM_PROCID"],
        "MASTER_ADDR": first,
        "MASTER_PORT": str(20000 + int(env["SLURM_JOB_ID"]) % 10000),
    }
    return {name: env.get(name, value) for name, value in derived.items()}


def _one_agent_a_node(
    job_file: Path, distributed: DistributedConfig, env: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """`srun` of this module, a task a node, inside the job; and its environment."""
    env = {k: v for k, v in env.items() if not k.startswith(("SLURM_", "SRUN_", "SBATCH_")) or k in OF_THE_JOB}
    nodes = str(distributed.nodes)
    command = ["srun", "--overlap", "--kill-on-bad-exit=1", f"--nodes={nodes}", f"--ntasks={nodes}"]
    command += ["--ntasks-per-node=1", "--cpu-bind=none", f"--cpus-per-task={distributed.threads}"]
    command += [f"--gpus-per-node={distributed.gpus}"] if distributed.gpus else []
    agent = [sys.executable, "-m", "coordexp.training.launch", str(job_file), str(distributed.processes)]
    return [*command, *agent, nodes, str(distributed.threads)], env


def _runner(distributed: DistributedConfig, env: Mapping[str, str]) -> list[str]:
    """torchrun, on this machine alone or as one of several agents."""
    runner = ["-m", "torch.distributed.run", f"--nproc-per-node={distributed.processes}"]
    runner += [f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
    if distributed.nodes == 1:
        return [*runner, f"--master-port={env['MASTER_PORT']}"] if "MASTER_PORT" in env else [*runner, "--standalone"]
    return [*runner, *(f"--{name.lower().replace('_', '-')}={env[name]}" for name in VARIABLES)]


def _threads(distributed: DistributedConfig) -> dict[str, str]:
    each = str(distributed.share)
    return {"OMP_NUM_THREADS": each, "MKL_NUM_THREADS": each, "TOKENIZERS_PARALLELISM": "false"}


def _wait(command: list[str], env: dict[str, str]) -> int:
    """Exit code of `command`; SIGTERM goes on to it, and its end is waited for, so that it can save."""
    child = subprocess.Popen(command, env=env, close_fds=False)  # the job's lock is held until the last one ends
    if threading.current_thread() is not threading.main_thread():
        return child.wait()
    before = signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    file, processes, nodes, threads = sys.argv[1:]
    try:
        launch(Path(file), DistributedConfig(int(processes), int(nodes), int(threads)))
    except ModelError:
        sys.exit(1)  # torchrun has said why
