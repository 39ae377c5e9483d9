"""A real SLURM of two nodes on the loopback, from the distribution's packages, in a folder of its own.

Nothing outside the folder is touched: own ports, own keys, daemons stopped by their pid files. Clients find it through
wrappers in `bin/` that set SLURM_CONF, since the executor plugin takes every `SLURM_*` out of its environment.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr")
NODES = ("one", "two")
MEMORY = 9000  # MB that each node claims to have; nothing is reserved

SLURM_CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=500000,bf_interval=2
ReturnToService=2
JobRequeue=1
MinJobAge=43200
KillWait=20
SlurmdTimeout=60
GresTypes=gpu
{nodes}
PartitionName=cpu Nodes=ALL Default=YES DefMemPerCPU=500 State=UP
PartitionName=gpu Nodes=ALL DefMemPerCPU=500 State=UP GraceTime=30
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
    " CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN"
)


def missing() -> str:
    """Why no SLURM can be started here; empty when one can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=path) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install --no-install-recommends slurm-wlm munge"
    return "" if os.geteuid() == 0 else "the daemons of SLURM are started as root"


class Cluster:
    """Two nodes (`one`, `two`) of `cpus` cores and one stand-in GPU each; partitions `cpu` and `gpu` hold both."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder = folder.resolve()
        self.bin = self.folder / "bin"
        self.conf = self.folder / "slurm.conf"
        self.cpus = cpus
        self.env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}:/usr/sbin:/sbin"}

    def start(self) -> None:
        """Write the configuration, start munged, slurmctld and both slurmd, and wait until the nodes are idle."""
        for name in ("munge", "state", "bin", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        self._configure()
        munge = self.folder / "munge"
        self._daemon("munged", "--force", *(f"--{key}={munge / value}" for key, value in MUNGE_FILES.items()))
        self._daemon("slurmctld", "-f", str(self.conf))
        for node in NODES:
            self._daemon("slurmd", "-f", str(self.conf), "-N", node)  # an absolute path, else srun hangs
        self.wait(lambda: self.call("sinfo", "-h", "-N", "-p", "cpu", "-o", "%t").split() == ["idle"] * len(NODES))

    def stop(self) -> None:
        """End the jobs and then the daemons, each by its pid file."""
        self.call("scancel", "--user", "root", check=False)
        pids = [self.folder / f"slurmd-{node}.pid" for node in NODES]
        for file in (*pids, self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
            if file.exists():
                stop(int(file.read_text()))

    def call(self, *command: str, check: bool = True) -> str:
        """What a client of SLURM prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}\n{self.logs()}")
        return done.stdout.strip()

    def jobs(self) -> list[dict[str, str]]:
        """Every job that the controller remembers, finished ones too, in the order of submission."""
        lines = self.call("scontrol", "-o", "show", "jobs", check=False).splitlines()
        rows = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return sorted(rows, key=lambda row: int(row["JobId"]))

    def logs(self) -> str:
        """Ends of the daemons' logs."""
        return "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("slurm*.log")))

    def wait(self, ready, seconds: float = 30.0, what: str = "the cluster") -> None:
        """Until `ready()`; RuntimeError with the daemons' logs after `seconds`."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not ready after {seconds:.0f} s\n{self.logs()}")
            time.sleep(0.2)

    def _configure(self) -> None:
        (self.folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge" / "key").chmod(0o400)
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=port, cpus=self.cpus, memory=MEMORY)
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        values = {"host": host, "controller_port": ports[0], "user": "root", "folder": self.folder}
        self.conf.write_text(SLURM_CONF.format(nodes="\n".join(nodes), **values))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        device = self.folder / "nvidia0"
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName={','.join(NODES)} Name=gpu File={device}\n")
        for client in CLIENTS:
            real = shutil.which(client)
            wrapper = self.bin / client
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {real} "$@"\n')
            wrapper.chmod(0o755)

    def _daemon(self, *command: str) -> None:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")


MUNGE_FILES = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def stop(pid: int, seconds: float = 10.0) -> None:
    """SIGTERM, and SIGKILL to what is still there after `seconds`."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
            time.sleep(0.1)
