"""Start the training processes: one, several with torchrun, or several machines in a SLURM job or started by hand.

Machines find each other through the environment variables of ms-swift: NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.
In a SLURM job one call starts an agent on every node, which derives them from SLURM's variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from coordexp.runtime.errors import ConfigError, ModelError, located
from coordexp.runtime.io import read_json
from coordexp.training import elastic
from coordexp.training.checkpoints import complete_checkpoints, step_of
from coordexp.training.job import Job
from coordexp.training.ms_swift import eval_worker, worker
from coordexp.training.supervise import supervise

SHUTDOWN_SECONDS = 600  # enough for a step and its checkpoint after SIGTERM; torchrun's default is 30 s
ACCELERATOR_VARIABLES = {  # defaults of the environment, on a GPU
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # cuDNN's attention builds a plan for every batch length
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # lengths vary: without it, memory fragments
}
LIBRARY = str(Path(__file__).resolve().parents[2])
VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# SLURM variables that a nested srun may inherit; it would read all others as options.
SLURM_JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR")


class DistributedConfig(msgspec.Struct, frozen=True):
    """Processes of a training run.

    processes: per machine, one per GPU. nodes: machines. threads: CPU threads per machine.
    gpus: GPUs per machine to request from SLURM.
    """

    processes: int = 1
    nodes: int = 1
    threads: int = 1
    gpus: int = 0

    @classmethod
    def from_resources(cls, gpus: int, nodes: int, processes: int, threads: int) -> DistributedConfig:
        """From the resources granted to a job: one process per GPU (`gpus` counts all machines), else `processes`.

        Without GPUs there are at most as many processes as threads. ConfigError if there are fewer GPUs than
        processes, since fewer processes would mean a smaller batch.
        """
        if not gpus:
            return cls(max(min(processes, threads), 1), nodes, threads)
        if gpus < (world_size := processes * nodes):
            fix = f"add --resources gpu={world_size}, or lower processes"
            problem = "fewer GPUs than processes"
            raise ConfigError(located(problem, field="gpu", expected=world_size, found=gpus, fix=fix))
        if gpus % nodes:
            fix = "make gpu a multiple of nodes"
            raise ConfigError(located(f"{gpus} GPUs cannot be divided evenly over {nodes} nodes", field="gpu", fix=fix))
        return cls(gpus // nodes, nodes, threads, gpus // nodes)

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.processes * self.nodes

    @property
    def threads_per_process(self) -> int:
        """CPU threads of each process."""
        return max(self.threads // self.processes, 1)


def launch(job_file: Path, distributed: DistributedConfig) -> bool:
    """Run the training in `job_file`; returns whether this machine publishes the result.

    ModelError if training fails, ConfigError if the other machines cannot be found.
    """
    env = {**ACCELERATOR_VARIABLES, **os.environ, **_thread_variables(distributed)}
    rendezvous = _rendezvous(distributed, env)
    job = msgspec.convert(read_json(job_file), Job)
    generates = job.custom["detection_eval"]["every"] or job.custom["rollout"]["share"]
    module = eval_worker if generates else worker
    run_worker = ["-m", module.__name__, str(job_file)]
    if distributed.nodes == 1:
        torchrun = _torchrun(distributed, env) if distributed.processes > 1 else []
        command = [sys.executable, *torchrun, *run_worker]
    elif rendezvous is not None:
        env |= rendezvous
        command = [sys.executable, *_torchrun(distributed, env), *run_worker]
    else:
        command, env = _srun(job_file, distributed, env)
    code, interrupted = supervise(command, env, Path(job.checkpoints))
    if code and interrupted:
        raise ModelError(f"interrupted: {_saved(Path(job.checkpoints))}")
    if code:
        fix = "see the messages above; run again to resume from the last complete checkpoint"
        raise ModelError(f"training failed with exit code {code}\n  -> {fix}")
    return rendezvous is None or rendezvous["NODE_RANK"] == "0"


def _rendezvous(distributed: DistributedConfig, env: Mapping[str, str]) -> dict[str, str] | None:
    """ms-swift's variables for this machine; None for a single machine, or if srun is to start all of them."""
    if distributed.nodes == 1:
        return None
    if "NODE_RANK" in env:
        missing = [name for name in VARIABLES if name not in env and name != "NNODES"]
        if missing or int(env.get("NNODES", distributed.nodes)) != distributed.nodes:
            found = {name: env.get(name) for name in VARIABLES}
            fix = "export the same values on every machine, and NODE_RANK from 0"
            problem = f"{distributed.nodes} nodes need all variables"
            raise ConfigError(located(problem, field="NNODES", found=found, fix=fix))
        return {"NNODES": str(distributed.nodes), **{name: env[name] for name in VARIABLES if name in env}}
    if env.get("SLURM_STEP_NUM_TASKS") == env.get("SLURM_STEP_NUM_NODES") == str(distributed.nodes):
        return slurm_rendezvous(env)
    if "SLURM_JOB_ID" in env:
        return None
    fix = "start it in a SLURM job, or on every machine with NODE_RANK, MASTER_ADDR and MASTER_PORT exported"
    problem = f"{distributed.nodes} machines requested, but only this one is known"
    raise ConfigError(located(problem, field="nodes", fix=fix))


def slurm_rendezvous(env: Mapping[str, str]) -> dict[str, str]:
    """ms-swift's variables for one task of an `srun` with one task per node; variables already set take precedence."""
    listed = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
    first = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[0]
    derived = {
        "NNODES": env["SLURM_STEP_NUM_NODES"],
        "NODE_RANK": env["SLURM_PROCID"],
        "MASTER_ADDR": first,
        "MASTER_PORT": str(20000 + int(env["SLURM_JOB_ID"]) % 10000),
    }
    return {name: env.get(name, value) for name, value in derived.items()}


def _srun(job_file: Path, distributed: DistributedConfig, env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run this module once per node of the SLURM job."""
    inherited = {
        name: value
        for name, value in env.items()
        if not name.startswith(("SLURM_", "SRUN_", "SBATCH_")) or name in SLURM_JOB_VARIABLES
    }
    nodes = str(distributed.nodes)
    command = ["srun", "--overlap", "--kill-on-bad-exit=1", f"--nodes={nodes}", f"--ntasks={nodes}"]
    command += ["--ntasks-per-node=1", "--cpu-bind=none", f"--cpus-per-task={distributed.threads}"]
    command += [f"--gpus-per-node={distributed.gpus}"] if distributed.gpus else []
    agent = [sys.executable, "-m", __spec__.name, str(job_file), str(distributed.processes)]
    return [*command, *agent, nodes, str(distributed.threads)], inherited


def _torchrun(distributed: DistributedConfig, env: Mapping[str, str]) -> list[str]:
    """torchrun on this machine, alone or as one of several agents."""
    command = ["-m", elastic.__name__, f"--nproc-per-node={distributed.processes}"]
    # Ctrl-C reaches the processes as SIGTERM (`training.supervise`), so torchrun must not handle SIGINT.
    command += [f"--shutdown-timeout={SHUTDOWN_SECONDS}", "--signals-to-handle=SIGTERM"]
    if distributed.nodes == 1:
        return [*command, f"--master-port={env['MASTER_PORT']}"] if "MASTER_PORT" in env else [*command, "--standalone"]
    return [*command, *(f"--{name.lower().replace('_', '-')}={env[name]}" for name in VARIABLES)]


def _thread_variables(distributed: DistributedConfig) -> dict[str, str]:
    threads = str(distributed.threads_per_process)
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def _import_variables() -> dict[str, str]:
    """Processes import this library, and neither modules nor packages of the working directory."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", ".")]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys([LIBRARY, *others]))}


def _saved(checkpoints: Path) -> str:
    complete = complete_checkpoints(checkpoints)
    if not complete:
        return "no checkpoint was saved; run the same command again to start over"
    return f"saved at step {step_of(complete[-1])}; run the same command again to continue"


if __name__ == "__main__":
    file, processes, nodes, threads = sys.argv[1:]
    try:
        launch(Path(file), DistributedConfig(int(processes), int(nodes), int(threads)))
    except ModelError:
        sys.exit(1)  # torchrun has printed the reason
