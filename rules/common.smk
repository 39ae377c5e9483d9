# Checked configuration, paths, and the params that decide what reruns.
import json
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
CODE_ROOTS = (ROOT, ROOT / "src")
sys.path[:0] = [str(root) for root in CODE_ROOTS if str(root) not in sys.path]

from coordexp.config import runs
from coordexp.config.sweeps import Ablation, BASE_ARM
from coordexp.runtime.code_identity import code_fingerprint
from coordexp.runtime.io import canonical_json
from coordexp.config.settings import Settings, over_defaults

settings = Settings.load(over_defaults(config, ROOT), ROOT)
RESULTS = settings.data["output_base"]
RAW = settings.data["raw_root"]
PREPARED = runs.prepared(settings.config)
EXPANDED = f"{RESULTS}/models/{{model}}-coordexp"

shell.executable("bash")
# Snakemake tells numerical libraries the rule's threads, but not those written in Rust (hotcoco, tokenizers).
# Packages below ~/.local would come before those of the environment.
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={shlex.quote(os.pathsep.join(map(str, CODE_ROOTS)))}"
    " PYTHONNOUSERSITE=1 RAYON_NUM_THREADS=${{OMP_NUM_THREADS:-1}}; "
)


wildcard_constraints:
    run=runs.PATTERN,
    runs=rf"{runs.PATTERN}(\+{runs.PATTERN})+",
    dataset=r"[A-Za-z0-9_-]+",
    split=r"train|val",
    tiny=r"(_tiny)?",
    model=r"[A-Za-z0-9._-]+",
    part=r"eval|calibration",


def keys(**values):
    """The keys that a rule reads, in the one spelling that params compare."""
    return canonical_json(values)


def code(rule_name):
    """Hash of the script of a rule, and of the plug-in that ms-swift loads for it by path."""
    modules = [f"workflow_scripts.{rule_name}", *(["coordexp.training.ms_swift.plugin"] if rule_name == "train" else [])]
    return "+".join(code_fingerprint(module, CODE_ROOTS) for module in modules)


def model_of(wildcards):
    """Folder of the expanded base that a run starts from."""
    return EXPANDED.format(model=settings.run(wildcards.run).model)


def source_of(wildcards, split=None):
    """Manifest of the data set and split that a run reads."""
    return f"{RAW}/{settings.run(wildcards.run).dataset}/{split or wildcards.split}.source.json"


def memory(megabytes=None, *, small=None, large=None):
    """Megabytes of a rule, or by the size of the run's base; half as much again at each retry."""

    def megabytes_of(wildcards, attempt):
        first = megabytes or settings.size(wildcards.run, small=small, large=large)
        return first * (attempt + 1) // 2

    return megabytes_of
