"""Finished training runs: which the workflow keeps, and whether the current code would train differently.

A training run that finished with the same configuration and user files is left out of the plan, and its
base with it: no rule then makes their files. Training takes days where everything after it takes hours, so
changed code, of training or of a stage before it, repeats training only on request (`train.rerun_on_code_change`).

Snakemake's `ancient()` is no way to do this: in 9.27 a job whose only changed inputs are ancient is skipped together
with all jobs after it before their own params are compared, so that another learning rate or a changed merge would be
missed whenever a conversion reruns in the same call.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from coordexp import __version__
from coordexp.config import runs
from coordexp.config.settings import Settings
from coordexp.datasets.mixture import PATHS, mixture_files
from coordexp.runtime.code_identity import code_identity, file_identity, identity_of, non_defaults
from coordexp.runtime.errors import ConfigError, CoordExpError
from coordexp.runtime.io import read_json
from coordexp.training.short_training import TrainingData, warnings

MANIFEST = "train/adapter/train_manifest.json"
LOG = "train/log.jsonl"
NOT_CONVERTED = ("num_workers", "shards", "tiny", "roles")  # do not change the content of records


class FinishedRun(msgspec.Struct, frozen=True):
    """A training run that finished under the current configuration; `current` is the identity of the present code."""

    run: str
    trained_with: dict[str, Any]
    current: str

    @property
    def same_code(self) -> bool:
        """Whether the current code trains the same."""
        return self.trained_with["code"] == self.current


def finished_runs(settings: Settings) -> list[FinishedRun]:
    """Runs whose published training was made from the current configuration."""
    base = Path(settings.data.output_base)
    found = []
    for manifest in sorted((*base.glob(f"*/{MANIFEST}"), *base.glob(f"sweeps/*/*/{MANIFEST}"))):
        run = manifest.relative_to(base).as_posix().removesuffix(f"/{MANIFEST}")
        try:
            content = read_json(manifest)
            if content.get("made_from") != made_from(settings, run) or not (base / run / LOG).exists():
                continue
        except CoordExpError:  # no run of this configuration any more, or a damaged manifest: the rule explains it
            continue
        trained_with = content["code"]
        found.append(FinishedRun(run, trained_with, code_identity(*trained_with["modules"])))
    return found


def kept(settings: Settings, finished: Iterable[FinishedRun], arguments: list[str]) -> list[str]:
    """Names of the runs that are not trained again; `arguments` is the command line, which may ask for it."""
    base = settings.data.output_base
    strict = {t.run for t in finished if settings.run(t.run).train.rerun_on_code_change and not t.same_code}
    names = [t.run for t in finished if t.run not in strict]
    return [run for run in names if not _is_requested(arguments, "train", f"{base}/{run}", (MANIFEST, LOG))]


def kept_bases(settings: Settings, kept_runs: Iterable[str], arguments: list[str]) -> list[str]:
    """Names of the folders of bases that kept training runs need: a result of training only works with its own base."""
    found = {}
    for run in kept_runs:
        folder = settings.base(run)
        expanded = settings.run(run).vocab.init != "none"
        rule, manifest = ("expand_vocab", "coord_tokens.json") if expanded else ("fetch_model", "model_source.json")
        files = ("config.json", manifest)
        complete = all(Path(folder, file).exists() for file in files)
        if complete and not _is_requested(arguments, rule, folder, files):
            found[Path(folder).name] = None
    return list(found)


def differences(settings: Settings, finished: Iterable[FinishedRun]) -> list[str]:
    """One line per set of runs that the same earlier code has trained, for the user who plans or runs the workflow."""
    by_code: dict[tuple[str, ...], list[str]] = {}
    for training in finished:
        if not training.same_code:
            strict = settings.run(training.run).train.rerun_on_code_change
            ending = "retrained because train.rerun_on_code_change is set" if strict else "kept"
            version, code = training.trained_with["coordexp"], training.trained_with["code"]
            by_code.setdefault((version, code, training.current, ending), []).append(training.run)
    return [
        f"{', '.join(names)}: trained with a different version of the code (coordexp {version}, {code}) "
        f"than the current one ({__version__}, {current}); {ending}"
        + ("\n  -> to retrain: --config 'train={rerun_on_code_change: true}'" if ending == "kept" else "")
        for (version, code, current, ending), names in by_code.items()
    ]


def short_runs(settings: Settings, kept_runs: Iterable[str], arguments: Iterable[str]) -> list[str]:
    """Warnings about runs that a command line names and whose recipe is too short for their converted records."""
    base = re.escape(settings.data.output_base)
    names = dict.fromkeys(name for text in arguments for name in re.findall(rf"{base}/({runs.PATTERN})/", text))
    found = []
    for name in names:
        try:
            run = settings.run(settings.run(name).checkpoint)
            recipe, stats = settings.recipe(run.name), _training_data(settings, run.name)
        except CoordExpError:  # the rule that needs it explains it
            continue
        if stats is not None and run.name not in kept_runs:
            found += [f"warning: {run.name}: {text}" for text in warnings(recipe, stats, run.world_size)]
    return list(dict.fromkeys(found))


def _training_data(settings: Settings, run: str) -> TrainingData | None:
    """Counts of the converted training split; None if it is not known, as with a mixture or before the conversion."""
    custom = settings.recipe(run).custom
    path = Path(settings.records(run, settings.split(run, "train"))).with_suffix(".stats.json")
    if custom.train_jsonl or custom.fusion_config or not path.is_file():
        return None
    stats = read_json(path)
    return TrainingData(stats["images"]["written"], 4 * stats["objects"]["written"])


def _is_requested(arguments: list[str], rule: str, folder: str, outputs: Iterable[str]) -> bool:
    """Whether a command line forces a rule or names one of its outputs, so that the plan must have it."""
    words = [word for argument in arguments for word in argument.split("=")]
    if {"-F", "--forceall", "-f", "--force"} & set(words) or ({"-R", "--forcerun"} & set(words) and rule in words):
        return True
    paths = {os.path.normpath(f"{folder}/{name}") for name in outputs}
    return any(os.path.normpath(word) in paths for word in words if word)


def made_from(settings: Settings, run: str) -> str:
    """Identity of everything but code that decides what a run learns: options of all stages before, and user files.

    Options at their defaults do not count, so that a version that adds one keeps a finished training run.
    """
    own = settings.run(run)
    if own.checkpoint != run:
        raise ConfigError(f"run {run} uses the checkpoint of {own.checkpoint}")
    recipe = settings.recipe(run)
    facts = non_defaults(recipe)
    custom = facts["custom"] = dict(facts.get("custom", {}))
    files = {name: custom.pop(name, None) for name in ("train_jsonl", "val_jsonl", "categories", "fusion_config")}
    facts |= {"world_size": own.world_size, "desc": own.data.desc, "base": _base(settings, run)}
    facts["data"] = {split: _records(settings, settings.trained_on(run, split), run) for split in ("train", "val")}
    table, train = files["categories"], settings.split(run, "train")
    facts["categories"] = _file(table) if table else _source(settings, own.dataset, train)
    if files["fusion_config"]:
        path = settings.root / files["fusion_config"]
        facts["mixture"] = {
            key: [_records(settings, os.path.relpath(file), run) for file in mixture_files(path, key)] for key in PATHS
        }
        facts["mixture_file"] = _file(path)
    return identity_of(facts)


def _records(settings: Settings, path: str, run: str) -> Any:
    """What a records file is made from, or the content of a user file."""
    owner = settings.records_owner(path)
    if owner is None:
        return _file(path)
    try:
        maker = settings.run(owner[0])
        records = settings.run(maker.records)
    except ConfigError:  # a folder that the user made
        return _file(path)
    split = owner[2]
    selection = {"tiny": [records.data.tiny, records.data.seed]} if "_tiny" in path else {}
    if re.search("calibration|train_rest", path):
        selection["calibration"] = [maker.calibrate.images, maker.data.seed]
    codec = settings.recipe(records.name).custom.emit_norm if ".coord." in path else None
    options = {key: value for key, value in non_defaults(records.data).items() if key not in NOT_CONVERTED}
    source = _source(settings, records.dataset, split)
    return [os.path.basename(path), options, records.max_blocks, codec, selection, source]


def _source(settings: Settings, dataset: str, split: str) -> Any:
    return [dataset, settings.source(dataset, split), settings.own_annotations(dataset, split)]


def _base(settings: Settings, run: str) -> Any:
    """What the base of a run is made from; of one that another run trains, what that is trained on."""
    own = settings.run(run)
    entry = settings.runs.model(own.model)
    earlier = made_from(settings, settings.run(entry["run"]).checkpoint) if entry["source"] == "run" else None
    return [own.model, entry, earlier, settings.own_base(own.model), own.vocab.init]


def _file(path: str | Path) -> str | None:
    return file_identity(path) if Path(path).is_file() else None
