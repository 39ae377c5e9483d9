"""The workflow as a `module:` of another one, and held to the cores that it is given; dry runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

OUTER = f"""
module detection:
    snakefile: "{REPOSITORY / "Snakefile"}"
    config: config["detection"]

use rule * from detection as detection_*

use rule predict from detection as detection_predict with:
    resources:
        gpu=2,

rule paper:
    default_target: True
    input: "det/shapes_9/eval.json", "det/shapes_12/eval.json"
    output: "table.tsv"
    shell: "touch {{output}}"
"""

CONFIG = """
detection:
  data: {output_base: det, raw_root: raw, tiny: 5}
"""


def snakemake(folder: Path, *arguments: str) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def counts(printed: str) -> dict[str, int]:
    table = printed.split("Job stats:", 1)[1]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}


def test_another_workflow_uses_the_rules_with_its_own_changes(tmp_path):
    (tmp_path / "Snakefile").write_text('configfile: "config.yaml"\n' + OUTER)
    (tmp_path / "config.yaml").write_text(CONFIG)
    printed = snakemake(tmp_path)
    jobs = counts(printed)
    assert jobs["paper"] == 1 and jobs["detection_evaluate"] == 2 and jobs["detection_train"] == 2
    assert jobs["detection_expand_vocab"] == 1, "runs of one base share its vocabulary"
    assert "--source raw/shapes/train.source.json" in printed, "raw_root of the outer configuration"
    assert '--config \'{"seed":17,"tiny":5}\'' in printed, "its change over the defaults"
    assert re.search(r"rule detection_predict:\n(?:.+\n)*? +resources: .*gpu=2", printed)


def test_the_jobs_of_a_module_are_those_of_the_workflow_itself(tmp_path):
    (tmp_path / "Snakefile").write_text('configfile: "config.yaml"\n' + OUTER)
    (tmp_path / "config.yaml").write_text("detection: {}\n")
    inside = snakemake(tmp_path, "results/shapes_9/eval.json")
    own = snakemake(
        tmp_path, "--snakefile", str(REPOSITORY / "Snakefile"), *own_profile(), "results/shapes_9/eval.json"
    )
    assert ["--gpus 2" in text for text in (inside, own)] == [True, False], "the outer workflow's own resources"
    commands = [sorted(re.findall(r"python -m workflow_scripts.*", re.sub(r"--gpus \d", "", t))) for t in (inside, own)]
    assert commands[0] == commands[1] and len(commands[0]) == 14


def own_profile() -> tuple[str, ...]:
    config = str(REPOSITORY / "config" / "config.yaml")
    return ("--configfile", config, "--workflow-profile", str(REPOSITORY / "profiles" / "default"))


def test_no_job_takes_more_cores_than_are_given(tmp_path):
    own = ("--snakefile", str(REPOSITORY / "Snakefile"), *own_profile())
    for cores in (1, 3):
        printed = snakemake(tmp_path, *own, "--cores", str(cores), "results/lvis_768/eval.json")
        asked = [int(n) for n in re.findall(r"--(?:threads|workers) (\d+)", printed)]
        assert len(asked) == 4 and set(asked) == {cores}
        assert all(int(n) <= cores for n in re.findall(r"^ +threads: (\d+)$", printed, flags=re.MULTILINE))


def test_the_data_alone_of_the_splits_asked_for(tmp_path):
    own = ("--snakefile", str(REPOSITORY / "Snakefile"), *own_profile())
    for splits in (["val"], ["train", "val"]):
        choice = ("--config", f"data={{'splits': {splits}}}", "--", "results/lvis_768/data/complete")
        jobs = dict.fromkeys(("download", "convert_resize", "coord_tokenize", "tiny_split"), len(splits))
        assert counts(snakemake(tmp_path, *own, *choice)) == {**jobs, "data": 1, "total": 4 * len(splits) + 1}


def test_libraries_are_held_to_the_rule_s_threads(tmp_path):
    snakefile = f"""
include: "{REPOSITORY / "rules" / "common.smk"}"

rule threads:
    output: "threads.txt"
    threads: 3
    shell: "python -c 'from coordexp.modeling.safetensors_io import workers; import os; \\n"
        "with workers() as pool: print(pool.pieces._max_workers, os.environ[\\"RAYON_NUM_THREADS\\"])' > {{output}}"
"""
    (tmp_path / "Snakefile").write_text(snakefile)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "threads.txt").read_text() == "2 2\n"
