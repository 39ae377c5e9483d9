# The validated configuration, the environment of every job, and helper functions of the rules.
import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
CODE_ROOTS = (ROOT, ROOT / "src")
# Not ROOT, which is often the working directory: a file `random.py` there would replace Python's module.
IMPORTED = str(ROOT / "src")
if sys.path[0] != IMPORTED:
    sys.path.insert(0, IMPORTED)

from coordexp.config import runs, training_runs
from coordexp.config.settings import Settings, over_defaults
from coordexp.config.sections import SPLIT, VocabOptions
from coordexp.inference.vllm_engine.settings import check_available
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.config_io import choices_of
from coordexp.runtime.errors import ConfigError, CoordExpError
from coordexp.runtime.http_download import SECRET_URLS
from coordexp.runtime.io import canonical_json, home_is_writable
from coordexp.runtime.plugins import VARIABLE as PLUGINS
from coordexp.training.identity import training_code

try:
    settings = Settings.load(over_defaults(config, ROOT), ROOT)
except CoordExpError as error:
    raise WorkflowFailed(str(error)) from None
RESULTS = settings.data.output_base
RAW = settings.data.raw_root

os.environ[SECRET_URLS] = json.dumps(settings.secret_urls())  # params, which Snakemake stores, have only their keys
os.environ[PLUGINS] = os.pathsep.join(map(str, settings.plugins))  # they are part of the identity of the code

shell.executable("bash")
# The environment of every job. Snakemake limits the threads of numerical libraries to those of the rule, but not of
# libraries in Rust (hotcoco, tokenizers). Packages in ~/.local would take precedence over those of the environment, and
# modules in the working directory over those of the repository.
ENVIRONMENT = {
    "PYTHONPATH": IMPORTED,
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    PLUGINS: os.environ[PLUGINS],
}
if not home_is_writable():  # otherwise each job compiles a list of all fonts
    ENVIRONMENT["MPLCONFIGDIR"] = str(Path(".snakemake/matplotlib").resolve())
shell.prefix(
    "set -euo pipefail; export "
    + " ".join(f"{name}={shlex.quote(value)}" for name, value in ENVIRONMENT.items())
    .replace("{", "{{")
    .replace("}", "}}")
    + " RAYON_NUM_THREADS=${{OMP_NUM_THREADS:-1}}; "
)


# No rule lists the files of finished training runs and their bases as outputs, so changed code does not repeat them
# (config.training_runs). A job on a cluster loads this file again and runs what was planned.
FINISHED = training_runs.finished_runs(settings) if workflow.is_main_process else []
KEPT = training_runs.kept(settings, FINISHED, sys.argv)
KEPT_BASES = training_runs.kept_bases(settings, KEPT, sys.argv)
MODEL = r"[A-Za-z0-9._-]+"
SHORT = training_runs.short_runs(settings, KEPT, sys.argv) if workflow.is_main_process else []
for line in [*training_runs.differences(settings, FINISHED), *SHORT]:
    print(line, file=sys.stderr)


wildcard_constraints:
    run=runs.PATTERN,
    runs=rf"{runs.PATTERN}(\+{runs.PATTERN})+",
    sweep=runs.NAME,
    dataset=r"[A-Za-z0-9_-]+",
    split=SPLIT,
    tiny=r"(_tiny)?",
    model=MODEL,
    init=f"(-({'|'.join(choices_of(VocabOptions, 'init'))}))?",
    part=r"eval|calibration",


def keys(**values):
    """The options that determine a job, as canonical JSON; Snakemake reruns the job when this text changes."""
    return canonical_json(values)


def without(folders, pattern):
    """`pattern` of a wildcard, except where it starts one of the paths `folders`."""
    return rf"(?!(?:{'|'.join(map(re.escape, folders))})/){pattern}" if folders else pattern


def code(rule_name):
    """Identity of the code that a rule's script runs; messages, comments and `coordexp.runtime` are ignored."""
    return code_identity(f"workflow_scripts.{rule_name}", roots=CODE_ROOTS)


def own_records(wildcards):
    """The run, if it has records of its own; otherwise a ConfigError, as no rule would read the requested file."""
    run = settings.run(wildcards.run)
    if run.records != run.name:
        raise ConfigError(f"run {run.name} reads the records of {run.records}\n  -> ask for {run.records}")
    return run


def own_checkpoint(wildcards):
    """The run, if it is trained; otherwise a ConfigError, as no rule would read the requested file."""
    run = settings.run(wildcards.run)
    if run.checkpoint != run.name:
        raise ConfigError(f"run {run.name} uses the checkpoint of {run.checkpoint}\n  -> ask for {run.checkpoint}")
    return run


def base_of(wildcards):
    """The base that a run starts from, and the manifest of its coordinate tokens if it has them."""
    folder = settings.base(wildcards.run)
    expanded = settings.run(wildcards.run).vocab.init != "none"
    return {"base": f"{folder}/config.json", **({"tokens": f"{folder}/coord_tokens.json"} if expanded else {})}


def fetched_of(wildcards):
    """The base before coordinate tokens are added, and the manifest that changes with it."""
    folder = settings.fetched(wildcards.model)
    manifest = "merge_manifest" if settings.runs.model(wildcards.model)["source"] == "run" else "model_source"
    return {"config": f"{folder}/config.json", "manifest": f"{folder}/{manifest}.json"}


def source_of(wildcards, split=None):
    """Manifest of a split, or of the split with a role, of the dataset that a run reads."""
    name = settings.split(wildcards.run, split) if split else wildcards.split
    return f"{RAW}/{settings.run(wildcards.run).dataset}/{name}.source.json"


def evaluated_source(wildcards, run=None):
    """Manifest of the split that a run is evaluated on; its categories are those of the prompts."""
    run = run or wildcards.run
    return f"{RAW}/{settings.run(run).dataset}/{settings.evaluated_split(run)}.source.json"


def predicted(wildcards):
    """Pixel-space records that a run predicts: the evaluated split, or its calibration split."""
    return evaluated(wildcards) if wildcards.part == "eval" else settings.records(wildcards.run, "calibration")


def conversion_of(wildcards):
    """What determines the records and images of a split."""
    options = settings.conversion(own_records(wildcards).name, wildcards.split)
    return {"options": options, "max_blocks": settings.run(wildcards.run).max_blocks}


def conversion_shards(wildcards):
    """Markers of the converted shards of a split; none if it is converted in one job."""
    count, folder = settings.run(wildcards.run).data.shards, f"{RESULTS}/{wildcards.run}/data/shards/{wildcards.split}"
    return [f"{folder}/{n}-of-{count}" for n in range(1, count + 1)] if count > 1 else []


def shards_of(wildcards):
    """Predictions of every shard, in order."""
    count = settings.run(wildcards.run).predict.shards
    return [f"{RESULTS}/{wildcards.run}/{wildcards.part}/shards/{n}-of-{count}.jsonl" for n in range(1, count + 1)]


def evaluated(wildcards):
    """Pixel-space records that a run is evaluated on."""
    return settings.records(wildcards.run, settings.split(wildcards.run, settings.run(wildcards.run).predict.split))


def prediction_of(wildcards):
    """Options of the run's predictions, for params; ConfigError if their engine is not installed."""
    found = settings.prediction(wildcards.run)
    if (
        found["options"]["engine"] == "vllm"
        and DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method
    ):
        check_available()
    return found


def calibration_of(wildcards):
    """The fitted calibration, if the run's scores are calibrated."""
    return [f"{RESULTS}/{wildcards.run}/calibration.json"] if settings.run(wildcards.run).calibrated else []


def trials_of(wildcards):
    """Names of the runs of a sweep."""
    return settings.runs.trials(wildcards.sweep)


def default_targets():
    """The demo, or with `--report` the pages of all finished runs, comparisons and sweeps."""
    demo = [f"{RESULTS}/shapes_9/eval.json", f"{RESULTS}/shapes_9/report.html"]
    if not any(argument.split("=")[0] == "--report" for argument in sys.argv):
        return demo
    runs_pages = [page for page in Path(RESULTS).glob("*/report.html") if settings.runs.is_known(page.parent.name)]
    other_pages = [*Path(RESULTS).glob("compare/*/report.html"), *Path(RESULTS).glob("sweeps/*/summary.html")]
    return [str(page) for page in sorted([*runs_pages, *other_pages])] or demo


def memory(megabytes=None, *, small=None, large=None):
    """Memory of a rule in MB, by the size of the run's base if two are given; each retry adds half of the first value."""

    def megabytes_of(wildcards, attempt):
        first = megabytes or settings.size(wildcards.run, small=small, large=large)
        return first * (attempt + 1) // 2

    return megabytes_of
