"""Resolves the name of a run to its dataset, records, checkpoint, and sections of the configuration.

- `{dataset}_{max_blocks}`: the settings of `runs.{dataset}`, and then those of the run's own entry, override the
  sections of the configuration. The run has records of its own.
- any other name has an entry in `runs`, which names a parent run and overrides its settings.
- `sweeps/{sweep}/{variant}-seed{N}` is a trial of a sweep; its entry is computed (`config.sweeps`).
- `{run}-seed{N}` is a run with another seed; its entry is computed too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from coordexp.config import sweeps
from coordexp.config.sections import (
    DataOptions,
    EvaluateSection,
    PredictSection,
    ReportOptions,
    RunEntry,
    TrainOptions,
    VocabOptions,
)
from coordexp.inference.options import CalibrateOptions
from coordexp.runtime.config_io import checked, merge
from coordexp.runtime.errors import ConfigError, located, nearest

SMALL_BYTES = 500e6  # weights of a checkpoint that a laptop trains without a GPU
RESERVED = ("benchmarks", "compare", "logs", "models", "sweeps")  # other folders of results
NAME = r"[A-Za-z0-9_-]+"
TRIAL = rf"sweeps/{NAME}/[A-Za-z0-9._=-]+"
PATTERN = rf"(?:{TRIAL}|(?!(?:{'|'.join(RESERVED)})[/+]){NAME})"  # of a run in a path
SHAPE = "{dataset}_{max_blocks}"
BLOCKS = r"[1-9][0-9]*"
SEEDED = re.compile(r"(.+)-seed([0-9]+)")
PARENTS = ("extends", "records_from", "checkpoint_from")  # keys of an entry that name another run, in this order
IDENTITY = ("dataset", "max_blocks")
SECTIONS = {
    "data": DataOptions,
    "vocab": VocabOptions,
    "train": TrainOptions,
    "predict": PredictSection,
    "calibrate": CalibrateOptions,
    "evaluate": EvaluateSection,
    "report": ReportOptions,
}


class Run(msgspec.Struct, frozen=True):
    """The resolved configuration of one run.

    records, checkpoint, calibration_split: the run whose records, trained checkpoint, and calibration split are used;
    the run itself unless its entry says otherwise. recipe: sections of a recipe over those that it `extends`.
    """

    name: str
    dataset: str
    max_blocks: int
    records: str
    checkpoint: str
    calibration_split: str
    model: str
    recipe: dict[str, Any]
    data: DataOptions
    vocab: VocabOptions
    train: TrainOptions
    predict: PredictSection
    calibrate: CalibrateOptions
    evaluate: EvaluateSection
    report: ReportOptions

    @property
    def world_size(self) -> int:
        """Training processes on all machines."""
        return self.train.processes * self.train.nodes

    @property
    def calibrated(self) -> bool:
        """Whether scores are turned into probabilities."""
        return self.calibrate.method != "none"


class _Settings(NamedTuple):
    """A run before its sections are merged with those of the configuration."""

    dataset: str
    max_blocks: int
    records: str
    checkpoint: str
    options: dict[str, Any]


class Runs:
    """Resolves names of runs and models under a checked configuration."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.entries: Mapping[str, Any] = config.get("runs", {})
        self.datasets: Mapping[str, Any] = config.get("datasets", {})
        self.models: Mapping[str, Any] = config.get("models", {})
        self.sweeps = {name: msgspec.convert(entry, sweeps.Sweep) for name, entry in config.get("sweeps", {}).items()}
        self.trials_of = {name: sweeps.trials(name, sweep) for name, sweep in self.sweeps.items()}
        self._resolved: dict[str, Run] = {}

    def resolve(self, name: str) -> Run:
        """The run of this name; ConfigError for an unknown name, or a run without model and recipe."""
        if name not in self._resolved:
            self._resolved[name] = self._merged(name, self._settings(name, name))
        return self._resolved[name]

    def is_known(self, name: str) -> bool:
        """Whether a run of this name can be resolved."""
        try:
            self.resolve(name)
        except ConfigError:
            return False
        return True

    def model(self, name: str) -> dict[str, Any]:
        """The entry of a model; `{model}-seed{N}` is the same model from another seed. ConfigError for another name."""
        if name in self.models:
            return self.models[name]
        match = SEEDED.fullmatch(name)
        base = self.models.get(match[1]) if match else None
        if base and base["source"] == "tiny":
            return {**base, "seed": int(match[2])}
        if base and base["source"] == "run":
            return {**base, "run": f"{base['run']}-seed{match[2]}"}
        problem = f"unknown model {name!r}{nearest(name, self.models)}"
        raise ConfigError(located(problem, field="models", expected=sorted(self.models)))

    def trials(self, sweep: str) -> list[str]:
        """Names of the runs of a sweep; ConfigError for an unknown sweep."""
        if sweep not in self.sweeps:
            problem = f"unknown sweep {sweep!r}{nearest(sweep, self.sweeps)}"
            raise ConfigError(located(problem, field="sweeps", expected=sorted(self.sweeps)))
        return [trial.run for trial in self.trials_of[sweep]]

    def is_small(self, run: str, _chain: tuple[str, ...] = ()) -> bool:
        """Whether a run's base is a small model, possibly trained by other runs; ConfigError for a circular `run`.

        A checkpoint in the user's own folder is small if its weights are; one on a hub counts as large.
        """
        model = self.model(self.resolve(run).model)
        if run in _chain:
            cycle = " -> ".join((*_chain, run))
            raise ConfigError(located(f"circular models of source `run`: {cycle}", field="models"))
        if model["source"] == "run":
            return self.is_small(model["run"], (*_chain, run))
        if model["source"] == "path":
            sizes = [file.stat().st_size for file in Path(model["path"]).glob("*.safetensors")]
            return 0 < sum(sizes) < SMALL_BYTES
        return model["source"] == "tiny"

    def check(self) -> None:
        """ConfigError for an entry of `runs` that names no run, is ambiguous, or has contradicting settings."""
        for name, entry in self.entries.items():
            field = f"runs.{name}"
            if name in self.datasets or self._is_budgeted(name):
                self._check_dataset_entry(name, entry, field)
            else:
                self._check_name(name, entry, field)
            if name not in self.datasets:
                self.resolve(name)
                self.is_small(name)
        for name, entry in self.models.items():
            if entry["source"] == "run":
                self._settings(entry["run"], f"models.{name}.run")
        for name, sweep in self.sweeps.items():
            self._check_sweep(name, sweep)

    def _check_sweep(self, name: str, sweep: sweeps.Sweep) -> None:
        self._settings(sweep.run, f"{sweeps.PREFIX}.{name}.run")
        self.resolve(sweep.run)
        sweeps.baseline(name, sweep)
        for variant, trial in {trial.variant: trial for trial in self.trials_of[name]}.items():
            checked(trial.overrides, RunEntry, field=f"{sweeps.PREFIX}.{name} ({variant})")

    def _merged(self, name: str, settings: _Settings) -> Run:
        options = settings.options
        if not {"model", "recipe"} <= set(options) or "extends" not in options["recipe"]:
            fix = f"add them to runs.{settings.dataset} or runs.{name}"
            raise ConfigError(located("no model and recipe", field=f"runs.{name}", fix=fix))
        if options["model"] not in self.models and not SEEDED.fullmatch(options["model"]):
            hint = nearest(options["model"], self.models)
            raise ConfigError(located(f"unknown model {options['model']!r}{hint}", field=f"runs.{name}.model"))
        if settings.records != name:
            options = {**options, "data": self._settings(settings.records, name).options.get("data", {})}
        sections = {}
        for section, kind in SECTIONS.items():
            over = merge(self.config.get(section, {}), options.get(section, {}))
            known = {key: value for key, value in over.items() if key in kind.__struct_fields__}
            sections[section] = msgspec.convert(known, kind)
        split = self._calibration_split(name, settings, sections["calibrate"])
        _check_sections(name, settings.max_blocks, sections)
        return Run(
            name=name,
            dataset=settings.dataset,
            max_blocks=settings.max_blocks,
            records=settings.records,
            checkpoint=settings.checkpoint,
            calibration_split=split,
            model=options["model"],
            recipe=options["recipe"],
            **sections,
        )

    def _calibration_split(self, name: str, settings: _Settings, calibrate: CalibrateOptions) -> str:
        if settings.checkpoint != name:
            trained = self.resolve(settings.checkpoint)
            if trained.calibrate.images != calibrate.images:
                field, fix = f"runs.{name}.calibrate.images", "set it for the run that is trained"
                facts = {"expected": trained.calibrate.images, "found": calibrate.images}
                raise ConfigError(located("is determined by `checkpoint_from`", field=field, fix=fix, **facts))
            return trained.calibration_split
        if settings.records != name:
            records = self.resolve(settings.records)
            return name if records.calibrate.images != calibrate.images else records.calibration_split
        return name

    def _settings(self, name: str, field: str, chain: tuple[str, ...] = ()) -> _Settings:
        """Settings of a run over those of its parents; `field` is where the name is found, for messages."""
        if name in chain:
            raise ConfigError(located(f"circular runs: {' -> '.join((*chain, name))}", field=field))
        if self._is_budgeted(name):
            dataset, _, blocks = name.rpartition("_")
            options = _override(_inline(self.entries.get(dataset, {})), self.entries.get(name, {}))
            return _Settings(dataset, int(blocks), name, name, options)
        listed = name in self.entries and name not in self.datasets
        entry = self.entries[name] if listed else self._computed(name, field)
        named = [key for key in PARENTS if entry.get(key)]
        if not named:
            raise ConfigError(located(f"needs one of {', '.join(PARENTS)}", field=f"runs.{name}"))
        parents = {key: self._settings(entry[key], f"runs.{name}.{key}", (*chain, name)) for key in named}
        _check_effects(name, entry, parents)
        own = {key: value for key, value in entry.items() if key not in (*PARENTS, *IDENTITY)}
        first = parents[named[0]]
        options = _override(first.options, own)
        if named == ["extends"]:
            identity = [entry.get(key) or getattr(first, key) for key in IDENTITY]
            return _Settings(*identity, records=name, checkpoint=name, options=options)
        other = parents[named[-1]]
        checkpoint = other.checkpoint if named == ["checkpoint_from"] else name
        return _Settings(other.dataset, other.max_blocks, other.records, checkpoint, options)

    def _computed(self, name: str, field: str) -> dict[str, Any]:
        """The entry of a trial of a sweep, or of a run with another seed; ConfigError for any other name."""
        if name.startswith(f"{sweeps.PREFIX}/"):
            return self._trial(name)
        match = SEEDED.fullmatch(name)
        if match:
            base, seed = match[1], int(match[2])
            entry = sweeps.seeded({"records_from": base}, seed)
            return {**entry, "model": self._seeded_model(self._settings(base, field).options.get("model"), seed)}
        raise self._unknown(name, field)

    def _trial(self, name: str) -> dict[str, Any]:
        trial, training = sweeps.trial_of(name, self.trials_of)
        sweep = self.sweeps[trial.sweep]
        if training.run != name:
            varied = self.resolve(sweep.run)  # all options, so that none of the training trial's own is inherited
            after = {key: msgspec.to_builtins(getattr(varied, key)) for key in sweeps.AFTER_TRAINING}
            own = {key: trial.overrides.get(key) or {} for key in after}
            return {"checkpoint_from": training.run, **merge(after, own)}
        entry = {"extends": sweep.run, **sweeps.seeded(trial.overrides, trial.seed)}
        if sweep.seed_weights:
            model = trial.overrides.get("model") or self._settings(sweep.run, name).options.get("model")
            entry["model"] = self._seeded_model(model, trial.seed)
        changes = [trial.overrides.get(key) for key in ("data", *IDENTITY)]
        if not any(changes):
            return {**entry, "records_from": sweep.run}
        first = next(
            t for t in self.trials_of[trial.sweep] if [t.overrides.get(key) for key in ("data", *IDENTITY)] == changes
        )
        if first.run == name:
            return entry
        kept = {key: value for key, value in entry.items() if key not in ("data", *IDENTITY)}
        return {**kept, "records_from": first.run}

    def _seeded_model(self, model: str | None, seed: int) -> str | None:
        """The model from another seed, where its weights depend on one."""
        varies = self.models.get(model or "", {}).get("source") in ("tiny", "run")
        return f"{model}-seed{seed}" if varies else model

    def _is_budgeted(self, name: str) -> bool:
        """Whether a name is `{dataset}_{max_blocks}`."""
        dataset, _, blocks = name.rpartition("_")
        return dataset in self.datasets and bool(re.fullmatch(BLOCKS, blocks))

    def _unknown(self, name: str, field: str) -> ConfigError:
        dataset, _, blocks = name.rpartition("_")
        known = sorted({*self.datasets, *(entry for entry in self.entries if entry not in self.datasets)})
        if re.fullmatch(BLOCKS, blocks):
            hint = nearest(dataset, known)
            return ConfigError(located(f"unknown dataset {dataset!r}{hint}", field=field, expected=known))
        hint = "" if name in self.datasets else nearest(name, known)
        fix = f"a run is named {SHAPE}, or has an entry in `runs` that names a parent (extends: lvis_768)"
        return ConfigError(located(f"unknown run {name!r}{hint}", field=field, expected=known, fix=fix))

    def _check_dataset_entry(self, name: str, entry: Mapping[str, Any], field: str) -> None:
        given = [key for key in (*PARENTS, *IDENTITY) if entry.get(key)]
        if given:
            problem = f"has no effect: {name} is the name of a dataset, or of a dataset and a budget"
            fix = f"choose a name for the run that is neither a dataset's nor {SHAPE}"
            raise ConfigError(located(problem, field=f"{field}.{given[0]}", fix=fix))

    def _check_name(self, name: str, entry: Mapping[str, Any], field: str) -> None:
        if not re.fullmatch(NAME, name):
            expected = "letters, digits, _ and -"
            raise ConfigError(located("invalid run name", field=field, expected=expected, found=name))
        if name in RESERVED:
            raise ConfigError(located("a reserved folder has this name", field=field, fix="choose another name"))
        if not any(entry.get(key) for key in PARENTS):
            raise self._unknown(name, field)


def _changes_of_records(trial: sweeps.Trial) -> list[Any]:
    """What a trial changes in the records of its sweep's run."""
    return [trial.overrides.get(key) for key in ("data", *IDENTITY)]


def _inline(entry: Mapping[str, Any]) -> dict[str, Any]:
    return _override({}, entry)


def _override(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run over those of its parent; a recipe that names a file replaces the parent's recipe."""
    over = sweeps.inline_recipe({key: value for key, value in over.items() if value is not None})
    if "extends" in over.get("recipe", {}):
        base = {key: value for key, value in base.items() if key != "recipe"}
    return merge(base, over)


def _check_effects(name: str, entry: Mapping[str, Any], parents: Mapping[str, _Settings]) -> None:
    """ConfigError for settings that would have no effect together with `records_from` or `checkpoint_from`."""
    field = f"runs.{name}"
    if "checkpoint_from" in parents and len(parents) > 1:
        fix = "remove the other key: settings and records are those of the checkpoint's run"
        raise ConfigError(
            located("cannot be combined with `extends` or `records_from`", field=f"{field}.checkpoint_from", fix=fix)
        )
    fixed = {
        "records_from": (("data", *IDENTITY), "use `extends` alone, which gives the run its own records"),
        "checkpoint_from": (
            ("data", *IDENTITY, "model", "recipe", "vocab"),
            "use `records_from`, with which the run trains its own checkpoint",
        ),
    }
    for key, (without_effect, fix) in fixed.items():
        given = [name for name in without_effect if key in parents and entry.get(name)]
        if given:
            raise ConfigError(located(f"has no effect together with `{key}`", field=f"{field}.{given[0]}", fix=fix))


def _check_sections(name: str, max_blocks: int, sections: Mapping[str, Any]) -> None:
    calibrate, min_blocks = sections["calibrate"], sections["data"].min_blocks
    if max_blocks < min_blocks:
        fix = f"use {SHAPE} or max_blocks with at least {min_blocks}, or lower data.min_blocks"
        problem = f"is smaller than data.min_blocks, which is {min_blocks}"
        raise ConfigError(located(problem, field=f"runs.{name}.max_blocks", found=max_blocks, fix=fix))
    if calibrate.method != "none" and not calibrate.images:
        fix = "set it to a few hundred images, which training then leaves out"
        field = f"runs.{name}.calibrate.images"
        raise ConfigError(located("no images to fit the calibration on", field=field, found=0, fix=fix))
    if sections["predict"].protocol == "phrases":
        _check_phrases(name, sections)
    _check_slices(name, sections)


def _check_phrases(name: str, sections: Mapping[str, Any]) -> None:
    """ConfigError for what cannot be combined with prompts for phrases."""
    method = sections["calibrate"].method
    if method != "none":
        problem, fix = "scores of answers to phrases cannot be calibrated", "set it to none"
        raise ConfigError(located(problem, field=f"runs.{name}.calibrate.method", found=method, fix=fix))
    if sections["predict"].slices is not None:
        problem = "a slice of the image may not show what a phrase refers to"
        field, fix = f"runs.{name}.predict.slices", "set it to null for predict.protocol: phrases"
        raise ConfigError(located(problem, field=field, fix=fix))


def _check_slices(name: str, sections: Mapping[str, Any]) -> None:
    """ConfigError for options of slices that would have no effect."""
    predict, method = sections["predict"], sections["calibrate"].method
    if predict.slices is None:
        return
    if predict.slices.score == "mean" and method == "logistic":
        problem, fix = "would replace the mean score by that of a single slice", "set it to isotonic or none"
        raise ConfigError(located(problem, field=f"runs.{name}.calibrate.method", found=method, fix=fix))
    if predict.slices.category_grids and (predict.chunk > 1 or not predict.protocol.endswith("_categories")):
        fix = "it needs predict.protocol: all_categories and predict.chunk: 1"
        raise ConfigError(located("has no effect", field=f"runs.{name}.predict.slices.category_grids", fix=fix))
