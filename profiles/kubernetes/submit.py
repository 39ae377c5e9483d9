#!/usr/bin/env python3
"""Submit a Snakemake job script as a Kubernetes Job; prints the Job's name.

The environment names the image (COORDEXP_IMAGE), the persistent volume claim (COORDEXP_CLAIM), the path at which
both Snakemake and the jobs see it (COORDEXP_MOUNT), and, if wanted, the namespace (COORDEXP_NAMESPACE).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROPERTIES = "# properties = "
GRACE_SECONDS = 600  # longest time in which a training finishes its step and saves after SIGTERM
# Process 1 of the container. Kubernetes sends SIGTERM to it alone, and a plain shell would neither exit nor forward it.
# This one forwards it to all processes, as SLURM does, and waits for them: the shell of the job script exits before the
# training has saved.
FIRST_PROCESS = """
trap 'asked=1; if [ $$ = 1 ]; then kill -s TERM -- -1; else kill -s TERM $job; fi' TERM
/bin/sh "$0" & job=$!
wait $job; code=$?
while kill -s 0 $job 2>/dev/null; do wait $job; code=$?; done
while [ $$ = 1 ] && [ "$asked" ] && set -- /proc/[0-9]* && [ $# -gt 1 ]; do sleep 1; done
exit $code
"""


def properties(jobscript: Path) -> dict:
    """The properties of a job that Snakemake writes into its script: threads, resources, rule or group."""
    for line in jobscript.read_text(encoding="utf-8").splitlines():
        if line.startswith(PROPERTIES):
            return json.loads(line.removeprefix(PROPERTIES))
    sys.exit(f"error: {jobscript}: no line {PROPERTIES!r}; it is not a job script of Snakemake")


def manifest(job: dict, jobscript: Path, folder: Path, image: str, claim: str, mount: str) -> dict:
    """The Job: one container, never restarted (Snakemake retries), memory in MB, time in minutes, whole GPUs."""
    resources = job["resources"]
    limits = {"memory": f"{resources['mem_mb']}M"}
    if resources.get("gpu"):
        limits["nvidia.com/gpu"] = str(resources["gpu"])  # an extended resource needs a limit equal to its request
    label = (job.get("rule") or job.get("groupid") or "job").replace("_", "-").lower()
    container = {
        "name": "job",
        "image": image,
        "command": ["/bin/sh", "-c", FIRST_PROCESS, str(jobscript)],
        "workingDir": str(folder),
        "resources": {"requests": {"cpu": str(job["threads"]), **limits}, "limits": limits},
        # Loader workers pass tensors through /dev/shm, which is 64 MB in a container unless it is mounted.
        "volumeMounts": [{"name": "shared", "mountPath": mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    pod = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 60 * resources["runtime"],  # the Job's own would count a pending pod
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"coordexp-{label[:30]}-", "labels": {"app": "coordexp"}},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": {"app": "coordexp"}}, "spec": pod},
        },
    }


def main() -> None:
    """Create the Job of the script that is the last argument."""
    jobscript = Path(sys.argv[-1]).resolve()
    missing = [name for name in ("COORDEXP_IMAGE", "COORDEXP_CLAIM", "COORDEXP_MOUNT") if not os.environ.get(name)]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not set\n  -> profiles/kubernetes/profile.yaml describes them")
    image, claim, mount = (os.environ[name] for name in ("COORDEXP_IMAGE", "COORDEXP_CLAIM", "COORDEXP_MOUNT"))
    if not jobscript.is_relative_to(Path(mount).resolve()):
        sys.exit(
            f"error: {jobscript.parent} is not on the shared volume {mount}\n  -> start Snakemake in a folder on it"
        )
    job = manifest(properties(jobscript), jobscript, Path.cwd(), image, claim, mount)
    namespace = ["--namespace", os.environ["COORDEXP_NAMESPACE"]] if os.environ.get("COORDEXP_NAMESPACE") else []
    command = ["kubectl", *namespace, "create", "--filename", "-", "--output", "name"]
    made = subprocess.run(command, input=json.dumps(job), text=True, stdout=subprocess.PIPE, check=True)
    print(made.stdout.strip().rpartition("/")[2])


if __name__ == "__main__":
    main()
