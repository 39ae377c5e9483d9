"""Sweeps: a run repeated for every combination of named overrides and for several seeds.

Every trial of a sweep is an ordinary run named `sweeps/{sweep}/{variant}-seed{seed}`, so all rules of the workflow
apply to it unchanged. Trials that differ only in how the model is prompted or scored share one training run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from coordexp.runtime.config_io import merge
from coordexp.runtime.errors import ConfigError, located, nearest
from coordexp.runtime.io import canonical_json

PREFIX = "sweeps"
# Sections of a run that change neither its records nor its training.
AFTER_TRAINING = ("predict", "calibrate", "evaluate", "report")

Axis = dict[str, dict[str, Any]] | list[Any]


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the `sweeps` section."""

    run: Annotated[str, msgspec.Meta(description="the run to vary")]
    axes: Annotated[
        dict[str, Axis],
        msgspec.Meta(
            title="map of axis to values",
            description="what is varied: an axis is a map of named overrides of the run, or, under the dotted path of "
            "a key (`predict.decode`, `recipe.training.learning_rate`), a list of its values; every combination is run",
        ),
    ]
    seeds: Annotated[
        tuple[int, ...],
        msgspec.Meta(min_length=1, description="each combination is trained once per seed"),
    ] = (1,)
    seed_weights: Annotated[
        bool,
        msgspec.Meta(description="give each seed its own initial weights: for base models with source `tiny` or `run`"),
    ] = False
    exclude: Annotated[
        tuple[dict[str, Any], ...],
        msgspec.Meta(
            description="combinations to leave out: those that have all axis values of an entry; a list matches any of "
            "its values"
        ),
    ] = ()
    baseline: Annotated[
        dict[str, Any],
        msgspec.Meta(description="axis values of the combination to compare the others with; default: the first"),
    ] = {}
    metric: Annotated[str, msgspec.Meta(description="the metric by which the best combination is chosen")] = "AP"


class Trial(msgspec.Struct, frozen=True):
    """One run of a sweep: the name of its value on each axis, and what these values change in the run."""

    sweep: str
    axes: dict[str, str]
    seed: int
    overrides: dict[str, Any]

    @property
    def variant(self) -> str:
        """The axis values as one name, the same for every seed."""
        return "_".join(self.axes.values())

    @property
    def run(self) -> str:
        """Name of the run, and of its folder below the results."""
        return f"{PREFIX}/{self.sweep}/{self.variant}-seed{self.seed}"

    @property
    def training(self) -> str:
        """Equal for trials that train the same model."""
        kept = {section: value for section, value in self.overrides.items() if section not in AFTER_TRAINING}
        calibrate = self.overrides.get("calibrate")
        images = calibrate.get("images") if isinstance(calibrate, Mapping) else None
        return canonical_json([kept, self.seed, images])


def trials(name: str, sweep: Sweep) -> list[Trial]:
    """Every trial of a sweep, the first axis varying slowest and the seed fastest.

    ConfigError for an axis without values, for values with the same name, and for an `exclude` or
    `baseline` that names an axis or a value that does not exist.
    """
    field = f"{PREFIX}.{name}"
    axes = {axis: _values(field, axis, values) for axis, values in sweep.axes.items()}
    for key, combination in [*(("exclude", c) for c in sweep.exclude), ("baseline", sweep.baseline)]:
        _check_combination(f"{field}.{key}", combination, axes)
    found = []
    for combination in itertools.product(*(values.items() for values in axes.values())):
        chosen = dict(zip(axes, (value for value, _ in combination), strict=True))
        if any(_matches(chosen, excluded) for excluded in sweep.exclude):
            continue
        overrides: dict[str, Any] = {}
        for _, changes in combination:
            overrides = merge(overrides, inline_recipe(changes))
        found += [Trial(name, chosen, seed, overrides) for seed in sweep.seeds]
    if not found:
        raise ConfigError(located("every combination is excluded", field=field, fix="remove entries of `exclude`"))
    return found


def baseline(name: str, sweep: Sweep) -> str:
    """The variant that all others are compared with."""
    for trial in trials(name, sweep):
        if _matches(trial.axes, sweep.baseline):
            return trial.variant
    raise ConfigError(located("no trial has these values", field=f"{PREFIX}.{name}.baseline", found=sweep.baseline))


def training_trials(listed: Iterable[Trial]) -> dict[str, Trial]:
    """The trial that trains the model of each trial, by the name of the run: the first one with the same training."""
    first: dict[str, Trial] = {}
    return {trial.run: first.setdefault(trial.training, trial) for trial in listed}


def trial_of(run: str, sweeps: Mapping[str, Sequence[Trial]]) -> tuple[Trial, Trial]:
    """The trial named `run`, and the trial that trains its model (often the same one), from the trials by sweep.

    ConfigError with the closest name when there is no such sweep or trial.
    """
    _, name, _ = [*run.split("/", 2), "", ""][:3]
    if name not in sweeps:
        raise ConfigError(located(f"unknown sweep {name!r}{nearest(name, sweeps)}", field=run, expected=sorted(sweeps)))
    by_run = {trial.run: trial for trial in sweeps[name]}
    if run not in by_run:
        raise ConfigError(located(f"unknown trial{nearest(run, by_run)}", field=run, expected=sorted(by_run)))
    return by_run[run], training_trials(sweeps[name])[run]


def inline_recipe(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` of a run with a recipe's path replaced by a map that extends it, so that it can be merged."""
    recipe = overrides.get("recipe")
    return {**overrides, "recipe": {"extends": recipe}} if isinstance(recipe, str) else dict(overrides)


def seeded(overrides: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """`overrides` of a run with `seed` as every seed of the recipe."""
    seeds = {"training": {"seed": seed, "data_seed": seed}, "custom": {"sample_seed": seed}}
    return merge(overrides, {"recipe": seeds})


def _values(field: str, axis: str, values: Axis) -> dict[str, dict[str, Any]]:
    """Overrides of the run by the name of each value of an axis."""
    if not values:
        raise ConfigError(located("the axis has no values", field=f"{field}.axes.{axis}"))
    pairs = values.items() if isinstance(values, dict) else ((_name(v), _nested(axis, v)) for v in values)
    named: dict[str, dict[str, Any]] = {}
    for value, changes in pairs:
        if not re.fullmatch(r"[A-Za-z0-9.=-]+", value):
            fix = "use letters, digits, `.`, `=` and `-`: the name is part of a folder's name"
            raise ConfigError(located("invalid value name", field=f"{field}.axes.{axis}", found=value, fix=fix))
        if value in named:
            fix = "name them: {name: overrides}"
            raise ConfigError(
                located("two values have the same name", field=f"{field}.axes.{axis}", found=value, fix=fix)
            )
        named[value] = changes
    return named


def _name(value: Any) -> str:
    """Spelling of a value in a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", text)


def _nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for the dotted path "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _matches(chosen: Mapping[str, str], combination: Mapping[str, Any]) -> bool:
    return all(chosen[axis] in _names(value) for axis, value in combination.items())


def _names(value: Any) -> Iterator[str]:
    """Names of one value, or of several in a list."""
    yield from map(_name, value if isinstance(value, list | tuple) else [value])


def _check_combination(field: str, combination: Mapping[str, Any], axes: Mapping[str, Mapping[str, Any]]) -> None:
    for axis, value in combination.items():
        if axis not in axes:
            raise ConfigError(located(f"unknown axis {axis!r}{nearest(axis, axes)}", field=field, expected=list(axes)))
        for name in _names(value):
            if name not in axes[axis]:
                hint = nearest(name, axes[axis])
                expected = list(axes[axis])
                raise ConfigError(located(f"unknown value {name!r}{hint}", field=f"{field}.{axis}", expected=expected))
