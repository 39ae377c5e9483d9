"""Identities of the inputs and the code of a training run, and the folder of its checkpoints.

A folder is named `{key}-{code}`. The key identifies recipe, data, base model and number of processes; the code is
the identity of all code that computes the training. By default, finished training is not repeated when the code
changes. An unfinished one resumes only with the same code, because different code might train its remaining steps
differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from coordexp import __version__
from coordexp.datasets import image_provenance, mixture
from coordexp.modeling.checkpoint_files import weights_identity
from coordexp.modeling.vocab import COORD_FILE
from coordexp.recipe import Recipe
from coordexp.runtime.code_identity import code_identity, file_identity, identity_of, non_defaults
from coordexp.runtime.io import read_json, write_json
from coordexp.runtime.software import describe
from coordexp.training import swift_arguments
from coordexp.training.ms_swift import eval_worker, worker

CODE_FILE = "code.json"
# Modules that determine the result of training; those that start its processes or publish its result do not affect it.
MODULES = (swift_arguments.__name__, worker.__name__)
EVAL_MODULE = eval_worker.__name__  # selects the best checkpoint, generates answers to train on


def training_key(recipe: Recipe, model_dir: Path, world_size: int = 1) -> str:
    """Identity of the inputs of a training run: recipe, content of the data, base model, and number of processes.

    Paths and experiment trackers do not count, nor do options at their defaults, so a version that adds an option
    keeps the key.
    """
    facts = {**non_defaults(recipe), "world_size": world_size}
    custom = facts["custom"] = dict(facts.get("custom", {}))
    if "report_to" in facts.get("training", {}):
        facts["training"] = {key: value for key, value in facts["training"].items() if key != "report_to"}
    for name in ("train_jsonl", "val_jsonl", "categories"):
        facts[name] = data_identity(custom.pop(name, None))
    facts["mixture"] = mixture_identity(custom.pop("fusion_config", None))
    facts["model"] = {file.name: file_identity(file) for file in model_dir.glob("*.json")} | weights_identity(model_dir)
    if (tokens := model_dir / COORD_FILE).exists():
        facts["model"][COORD_FILE] = {key: value for key, value in read_json(tokens).items() if key != "code"}
    return identity_of(facts)


def training_modules(recipe: Recipe) -> tuple[str, ...]:
    """Modules that determine the result of `recipe`; decoder and metrics count if training generates answers."""
    generates = recipe.custom.detection_eval.every or recipe.custom.rollout.active
    return (*MODULES, EVAL_MODULE) if generates else MODULES


def training_code(recipe: Recipe) -> str:
    """Identity of the code that trains with `recipe`."""
    return code_identity(*training_modules(recipe))


def data_identity(path: str | Path | None) -> Any:
    """Identity of a data file and of how the images of its records were made; independent of their paths."""
    return [file_identity(path), image_provenance.provenance_of_records(path)] if path else None


def mixture_identity(path: str | Path | None) -> Any:
    """A mixture as resolved, with the content of its files instead of their paths."""
    if not path:
        return None
    resolved = mixture.load_mixture(path)
    sources = {
        name: {**msgspec.to_builtins(source), **{key: data_identity(getattr(source, key)) for key in mixture.PATHS}}
        for name, source in resolved.sources.items()
    }
    return {**msgspec.to_builtins(resolved), "sources": sources}


def select_checkpoints(
    folder: Path, key: str, code: str, finished: Callable[[Path], bool], *, rerun_on_code_change: bool = False
) -> Path:
    """The folder below `folder` to publish from or train in; explains on stdout why earlier ones are not resumed.

    `finished` returns whether the training in a folder is complete. With `rerun_on_code_change`, a training run that
    finished with different code is not published.
    """
    current = folder / f"{key}-{code}"
    same_key = [other for other in sorted(folder.glob(f"{key}-*")) if other.is_dir() and other != current]
    if current.exists():
        return current
    complete = [other for other in same_key if finished(other)]
    if complete and not rerun_on_code_change:
        newest = max(complete, key=lambda other: (other / CODE_FILE).stat().st_mtime if _has_code(other) else 0)
        made = recorded_code(newest)
        print(
            f"training is already finished, with a different version of the code (coordexp {made['coordexp']}, "
            f"{made['code']}) than the current one ({__version__}, {code})\n"
            "  -> set train.rerun_on_code_change: true to retrain",
            flush=True,
        )
        return newest
    others = [other.name for other in sorted(folder.glob("*")) if other.is_dir()]
    if others:
        changed = "the code" if same_key else "recipe, data, base or number of processes"
        print(
            f"{changed} changed: starting from scratch in {current}; kept: {', '.join(others)}\n"
            f"  -> to resume one of those despite the change, rename it to {current.name} and run again",
            flush=True,
        )
    return current


def record_code(checkpoints: Path, code: str, modules: Iterable[str]) -> None:
    """Record the code that trains in `checkpoints`, with package versions and the commit of this process.

    The code that started the training is kept if a user has renamed the folder.
    """
    made = {"coordexp": __version__, "modules": list(modules), **describe(code)}
    earlier = read_json(checkpoints / CODE_FILE) if _has_code(checkpoints) else None
    if earlier is None or earlier["code"] != code:
        before = {} if earlier is None else {"started_by": earlier.get("started_by", earlier)}
        write_json(checkpoints / CODE_FILE, made | before)


def recorded_code(checkpoints: Path) -> dict[str, Any]:
    """Version (`coordexp`), identity (`code`) and `modules` of the code that trained in `checkpoints`."""
    if _has_code(checkpoints):
        return read_json(checkpoints / CODE_FILE)
    return {"coordexp": "unknown", "code": checkpoints.name.rpartition("-")[2], "modules": list(MODULES)}


def _has_code(checkpoints: Path) -> bool:
    return (checkpoints / CODE_FILE).is_file()
