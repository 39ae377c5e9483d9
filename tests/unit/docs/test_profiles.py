"""Cluster profiles match the rules and can be planned; their scripts drive a scheduler simulated by shell scripts."""

import importlib.util
import json
import os
import re
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from coordexp.training.launch import SHUTDOWN_SECONDS

REPOSITORY = Path(__file__).resolve().parents[3]
PROFILES = REPOSITORY / "profiles"
CLUSTERS = ("slurm", "generic", "kubernetes")
RULES = {
    name: body
    for file in (REPOSITORY / "rules").glob("*.smk")
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", file.read_text(), flags=re.MULTILINE)
    if "shell:" in body  # others only group files
}


def profile(name: str) -> dict:
    return yaml.safe_load((PROFILES / name / "profile.yaml").read_text())


def needs(executor: str) -> None:
    if importlib.util.find_spec(f"snakemake_executor_plugin_{executor.replace('-', '_')}") is None:
        pytest.skip(f"the executor plugin {executor} is not installed: pip install 'coordexp[cluster]'")


def snakemake(*arguments: str, folder: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", *arguments]
    bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": bin_first, **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=env)


@pytest.mark.parametrize("name", CLUSTERS)
def test_profile_names_existing_rules(name):
    settings = profile(name)
    for key in ("set-resources", "set-threads", "groups"):
        assert set(settings.get(key) or {}) <= set(RULES), key


@pytest.mark.parametrize("name", CLUSTERS)
def test_profile_replaces_the_default_profile(name):
    default, settings = profile("default"), profile(name)
    assert {key: settings.get(key) for key in default if key != "resources"} == {
        key: value for key, value in default.items() if key != "resources"
    }
    assert "gpu" not in settings["resources"], "would limit the GPU jobs of the whole cluster"
    assert settings["resources"]["download"] == default["resources"]["download"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_profile_retries_and_rules_request_more_memory_per_attempt(name):
    assert profile(name)["retries"] >= 1
    assert [rule for rule, body in RULES.items() if not re.search(r"mem_mb=memory\(", body)] == []


def test_submit_command_placeholders_have_values_for_every_rule():
    settings = profile("generic")
    names = {field for _, field, _, _ in string.Formatter().parse(settings["cluster-generic-submit-cmd"]) if field}
    wanted = {name.removeprefix("resources.") for name in names if name.startswith("resources.")}
    assert wanted <= set(settings["default-resources"])
    assert names - {f"resources.{name}" for name in wanted} == {"rule", "jobid", "threads"}
    assert "groups" not in settings, "a group has no {rule}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_profile_scripts_are_executable(name):
    for key, value in profile(name).items():
        if key.startswith("cluster-generic") and (PROFILES / name / str(value)).exists():
            assert os.access(PROFILES / name / value, os.X_OK), value


def planned_resources(name: str, tmp_path: Path) -> dict[str, dict[str, str]]:
    done = snakemake(
        *("--dry-run", "--workflow-profile", str(PROFILES / name), "--snakefile", str(REPOSITORY / "Snakefile")),
        *("--configfile", str(REPOSITORY / "config" / "config.yaml"), "--directory", str(tmp_path)),
        *("--", "results/lvis_768/eval.json", "results/lvis_768/report.html"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^ *rule (\w+):\n(?:.+\n)*? +resources: (.*)$", done.stdout + done.stderr, flags=re.MULTILINE)
    return {rule: dict(pair.split("=", 1) for pair in text.split(", ")) for rule, text in found}


@pytest.mark.parametrize(("name", "executor"), [("slurm", "slurm"), ("generic", "cluster-generic")])
def test_main_job_plans_with_the_profile(name, executor, tmp_path):
    needs(executor)
    jobs = planned_resources(name, tmp_path)
    chain = (
        "download convert_resize coord_tokenize tiny_split fetch_model expand_vocab train merge predict gather evaluate"
    )
    assert {*chain.split(), "report"} <= set(jobs) <= set(RULES)
    partition = "slurm_partition" if name == "slurm" else "partition"
    assert {rule for rule, job in jobs.items() if job[partition] == "gpu"} == {"train", "predict"}
    assert {rule for rule, job in jobs.items() if int(job.get("gpu", 0))} == {"train", "predict"}
    assert all(int(job["mem_mb"]) >= 1000 and int(job["runtime"]) >= 10 for job in jobs.values())


TOY = """
rule all:
    input: "done.txt"
rule train:
    output: "done.txt"
    threads: 2
    resources: mem_mb=lambda wildcards, attempt: 100 * (attempt + 1) // 2, runtime=7, gpu=1
    shell: "test {resources.mem_mb} -ge 150 && echo {threads} {resources.mem_mb} > {output}"
"""

# A scheduler in a folder of its own: a job is a process in the background, and its state is a file.
SBATCH = r"""#!/bin/sh
id=$(ls "$STATE" | grep -c '^args')
echo "$@" > "$STATE/args$id"
for script; do :; done
( if sh "$script" > "$STATE/out$id" 2>&1; then echo COMPLETED; else echo OUT_OF_MEMORY; fi > "$STATE/new$id"
  mv "$STATE/new$id" "$STATE/state$id" ) > /dev/null 2>&1 < /dev/null &
echo "$id"
"""
SCONTROL = r"""#!/bin/sh
for id; do :; done
echo "JobId=$id JobState=$(cat "$STATE/state$id" 2>/dev/null || echo RUNNING) Reason=None"
"""
KUBECTL = r"""#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys
state = pathlib.Path(os.environ["STATE"])
if "create" in sys.argv:
    job = json.load(sys.stdin)
    name = f"{job['metadata']['generateName']}{len(list(state.glob('*.json')))}"
    (state / f"{name}.json").write_text(json.dumps(job))
    [box] = job["spec"]["template"]["spec"]["containers"]
    code = subprocess.run(box["command"], cwd=box["workingDir"], capture_output=True).returncode
    (state / f"{name}.end").write_text("Failed" if code else "Complete")
    print(f"job.batch/{name}")
elif "get" in sys.argv:
    end = state / f"{sys.argv[sys.argv.index('job') + 1]}.end"
    if not end.exists():
        sys.exit("Error from server (NotFound): jobs.batch not found")
    print(json.dumps({"status": {"conditions": [{"type": end.read_text(), "status": "True"}]}}))
else:
    (state / "deleted").write_text(" ".join(sys.argv[sys.argv.index("job") + 1 :]))
"""


@pytest.fixture
def scheduler(tmp_path):
    """Environment with a stand-in for SLURM's and Kubernetes' commands, and a toy workflow to run under it."""
    for folder in ("bin", "state", "work"):
        (tmp_path / folder).mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("kubectl", KUBECTL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "work" / "Snakefile").write_text(TOY)
    path = os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {"PATH": path, "STATE": str(tmp_path / "state")}


def run_toy(name: str, scheduler: dict, folder: Path, **environment: str) -> str:
    needs("cluster-generic")
    quick = ("--seconds-between-status-checks", "1", "--latency-wait", "5")
    done = snakemake("--workflow-profile", str(PROFILES / name), *quick, folder=folder, **scheduler, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "done.txt").read_text()


@pytest.mark.slow
def test_generic_resubmits_a_job_with_more_memory_after_out_of_memory(scheduler, tmp_path):
    assert run_toy("generic", scheduler, tmp_path / "work") == "2 150\n"
    first, second = ((tmp_path / "state" / f"args{i}").read_text() for i in (0, 1))
    assert "--mem=100 --time=7 --gres=gpu:1" in first and "--cpus-per-task=2" in first and "--partition=gpu" in first
    assert "--mem=150" in second


@pytest.mark.slow
def test_kubernetes_job_requests_the_resources_of_its_rule_and_more_on_retry(scheduler, tmp_path):
    where = {"COORDEXP_IMAGE": "image:1", "COORDEXP_CLAIM": "claim", "COORDEXP_MOUNT": str(tmp_path)}
    assert run_toy("kubernetes", scheduler, tmp_path / "work", **where) == "2 150\n"
    jobs = [json.loads(file.read_text()) for file in sorted((tmp_path / "state").glob("*.json"))]
    pods = [job["spec"]["template"]["spec"] for job in jobs]
    assert [pod["containers"][0]["resources"]["limits"]["memory"] for pod in pods] == ["100M", "150M"]
    [box] = pods[0]["containers"]
    assert box["image"] == "image:1" and box["workingDir"] == str(tmp_path / "work")
    assert box["resources"]["requests"] == {"cpu": "2", "memory": "100M", "nvidia.com/gpu": "1"}
    assert pods[0]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "claim"
    assert pods[0]["activeDeadlineSeconds"] == 420 and jobs[0]["spec"]["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in jobs[0]["spec"], "would count the time that it waits for a GPU"


SMALL = """
data: {tiny: 3}
datasets: {shapes: {splits: {train: {count: 4, seed: 1}, val: {count: 4, seed: 2}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generic", "kubernetes"])
def test_data_stages_of_the_demo_run_as_cluster_jobs(name, scheduler, tmp_path):
    needs("cluster-generic")
    (tmp_path / "work" / "small.yaml").write_text(SMALL)
    where = {"COORDEXP_IMAGE": "image:1", "COORDEXP_CLAIM": "claim", "COORDEXP_MOUNT": str(tmp_path)}
    done = snakemake(
        *("--snakefile", str(REPOSITORY / "Snakefile"), "--workflow-profile", str(PROFILES / name)),
        *("--configfile", str(REPOSITORY / "config" / "config.yaml"), "small.yaml"),
        *("--seconds-between-status-checks", "1", "--latency-wait", "5"),
        *("--", "results/shapes_9/data/val_tiny.coord.jsonl"),
        folder=tmp_path / "work",
        **scheduler,
        **where,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tokens = (tmp_path / "work" / "results/shapes_9/data/val_tiny.coord.jsonl").read_text()
    assert tokens.count("\n") == 3
    submitted = list((tmp_path / "state").glob("args*" if name == "generic" else "*.json"))
    assert len(submitted) == (4 if name == "generic" else 3), "the two small rules are one job on Kubernetes"


def kubernetes_script(name: str, scheduler: dict, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROFILES / "kubernetes" / name), *arguments]
    env = {**os.environ, **scheduler, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)


def test_kubernetes_missing_job_counts_as_failed_and_cancel_deletes_it(scheduler, tmp_path):
    assert kubernetes_script("status.py", scheduler, "nothing").stdout == "failed\n"
    assert kubernetes_script("cancel.py", scheduler, "one", "two").returncode == 0
    assert (tmp_path / "state" / "deleted").read_text().endswith("one two")


def test_kubernetes_names_missing_variables(scheduler, tmp_path):
    done = kubernetes_script("submit.py", scheduler, "job.sh", COORDEXP_IMAGE="image:1")
    assert done.returncode == 1 and "COORDEXP_CLAIM, COORDEXP_MOUNT not set" in done.stderr


def test_kubernetes_rejects_a_directory_outside_the_volume(scheduler, tmp_path):
    where = {"COORDEXP_IMAGE": "i", "COORDEXP_CLAIM": "c", "COORDEXP_MOUNT": str(tmp_path / "elsewhere")}
    done = kubernetes_script("submit.py", scheduler, str(tmp_path / "job.sh"), **where)
    assert done.returncode == 1 and "is not on the shared volume" in done.stderr


# Nested as a job of Snakemake's: its own shell ends at once when told to, the process that works saves first.
WORKER = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1.5)
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("up").touch()
time.sleep(60)
"""
PROCESS_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture
def container(tmp_path):
    """Start a job script by the pod's command as process 1 of a PID namespace, as a container does."""
    if subprocess.run([*PROCESS_1, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a PID namespace")
    started = []

    def start(script: str) -> subprocess.Popen:
        (tmp_path / "job.sh").write_text(f"#!/bin/sh\n# properties = {{}}\n{script}\n")
        job = {"threads": 1, "resources": {"mem_mb": 1, "runtime": 1}}
        made = kubernetes_manifest(job, tmp_path / "job.sh")
        pod = made["spec"]["template"]["spec"]
        started.append(subprocess.Popen([*PROCESS_1, *pod["containers"][0]["command"]], cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def kubernetes_manifest(job: dict, jobscript: Path) -> dict:
    spec = importlib.util.spec_from_file_location("submit", PROFILES / "kubernetes" / "submit.py")
    submit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(submit)
    return submit.manifest(job, jobscript, jobscript.parent, "image:1", "claim", "/data")


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, file
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 3])
def test_kubernetes_pod_exits_with_the_code_of_its_job_despite_other_processes(container, code):
    assert container(f"sleep 60 & exit {code}").wait(30) == code


def test_kubernetes_pod_forwards_sigterm_so_that_processes_can_save(container, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    outside = subprocess.Popen(["sleep", "60"])
    pod = container(f"bash -c '{sys.executable} worker.py; true' || exit 1")
    wait_for(tmp_path / "up")
    [first] = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert pod.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert outside.poll() is None
    outside.kill()
    outside.wait()


def test_kubernetes_grace_period_covers_saving_a_checkpoint():
    job = {"threads": 1, "resources": {"mem_mb": 1, "runtime": 1}}
    pod = kubernetes_manifest(job, Path("/data/job.sh"))["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == SHUTDOWN_SECONDS


@pytest.mark.parametrize(
    ("state", "word"), [("COMPLETED", "success"), ("TIMEOUT", "failed"), ("PREEMPTED", "failed"), ("", "running")]
)
def test_slurm_states_map_to_snakemake_states(scheduler, tmp_path, state, word):
    (tmp_path / "state" / "state3").write_text(state)
    command = [str(PROFILES / "generic" / "status.sh"), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **scheduler})
    assert done.stdout == f"{word}\n"
