"""What the names of runs stand for: `lvis_768` by itself, another by an entry that says whose records it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from coordexp.runtime.config_io import merge
from coordexp.runtime.errors import ConfigError, located, nearest

RESERVED = ("ablation", "benchmarks", "compare", "logs", "models")  # folders that lie beside those of runs
NAME = r"[A-Za-z0-9_-]+"
PATTERN = rf"(?!(?:{'|'.join(RESERVED)})[/+]){NAME}"  # of a folder's name in a path
SHAPE = "{dataset}_{max_blocks}"
BLOCKS = r"[1-9][0-9]*"


class Run(msgspec.Struct, frozen=True):
    """What a run's name stands for: `lvis_768` is data set `lvis` at a budget of 768 tiles.

    `data` names the run whose records it reads: itself, unless an entry of `runs` names another.
    """

    name: str
    data: str
    dataset: str
    max_blocks: int
    model: str
    recipe: str
    processes: int
    nodes: int
    overrides: dict[str, Any]

    @property
    def world_size(self) -> int:
        """Training processes of all machines together."""
        return self.processes * self.nodes


def datasets(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The data sets of the `data` section by name."""
    return {name: value for name, value in config["data"].items() if isinstance(value, Mapping)}


def named(config: Mapping[str, Any]) -> dict[str, str]:
    """Runs with a name of their own, and whose records each of them reads."""
    return {name: entry["data"] for name, entry in config["runs"].items() if isinstance(entry.get("data"), str)}


def prepared(config: Mapping[str, Any]) -> str:
    """Pattern of the names of runs that have records of their own."""
    return rf"(?!(?:{'|'.join(named(config))})/){NAME}_{BLOCKS}"


def resolve(config: Mapping[str, Any], name: str) -> Run:
    """Meaning of a run's name; ConfigError for an unknown one, or one without model and recipe.

    The entry of the data set lies under that of `{dataset}_{max_blocks}`, and both under that of a named run.
    """
    runs, data = config["runs"], named(config).get(name, name)
    dataset, max_blocks = _parts(config, data, name)
    entry = merge(runs.get(dataset, {}), runs.get(data, {}))
    if data != name:
        entry = merge(entry, {key: value for key, value in runs[name].items() if key != "data"})
    if not {"model", "recipe"} <= set(entry):
        raise ConfigError(located("no model and recipe", field=f"runs.{dataset}", fix="add them to config/config.yaml"))
    if entry["model"] not in config["models"]:
        hint = nearest(entry["model"], config["models"])
        where = f"runs.{name if data != name else dataset}.model"
        raise ConfigError(located(f"unknown model {entry['model']!r}{hint}", field=where))
    overrides = {key: value for key, value in entry.items() if key not in ("model", "recipe", "processes", "nodes")}
    processes, nodes = (entry.get(key, config["train"][key]) for key in ("processes", "nodes"))
    return Run(name, data, dataset, max_blocks, entry["model"], entry["recipe"], processes, nodes, overrides)


def check(config: Mapping[str, Any]) -> None:
    """ConfigError for an entry of `runs` that stands for no run, or whose name could not be told from another."""
    for name, entry in config["runs"].items():
        if isinstance(entry.get("data"), str):
            _check_named(config, name, entry["data"])
        elif name not in datasets(config):
            _parts(config, name, f"runs.{name}")


def _check_named(config: Mapping[str, Any], name: str, data: str) -> None:
    field = f"runs.{name}"
    if not re.fullmatch(NAME, name):
        raise ConfigError(located("not a name of a run", field=field, expected="letters, digits, _ and -", found=name))
    if name in RESERVED:
        raise ConfigError(located("a folder of this name lies beside the runs", field=field, fix="choose another name"))
    dataset, _, blocks = name.rpartition("_")
    if name in datasets(config) or (dataset in datasets(config) and re.fullmatch(BLOCKS, blocks)):
        fix = "choose another name; only such a run reads another's records"
        raise ConfigError(located("is the name of a data set or of its run", field=field, fix=fix))
    if data in named(config):
        fix = f"name the run that has the records, {SHAPE}"
        raise ConfigError(located("reads the records of a run without any", field=f"{field}.data", found=data, fix=fix))
    _parts(config, data, f"{field}.data")


def _parts(config: Mapping[str, Any], name: str, field: str) -> tuple[str, int]:
    """Data set and budget (tiles) of `{dataset}_{max_blocks}`."""
    known_sets = datasets(config)
    dataset, _, blocks = name.rpartition("_")
    budgeted = re.fullmatch(BLOCKS, blocks)
    if dataset in known_sets and budgeted:
        return dataset, int(blocks)
    known = sorted({*known_sets, *named(config)})
    if budgeted:
        raise ConfigError(
            located(f"unknown data set {dataset!r}{nearest(dataset, known)}", field=field, expected=known)
        )
    hint = "" if name in known_sets else nearest(name, known)
    fix = f"a run is named {SHAPE}, or has an entry in `runs` that says whose records it reads (data: lvis_768)"
    raise ConfigError(located(f"unknown run {name!r}{hint}", field=field, expected=known, fix=fix))
