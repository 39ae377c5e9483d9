"""The ablation's grid: which recipe, start, seed and decoding each of its runs has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from coordexp.recipe import Recipe, load_recipe
from coordexp.runtime.config_io import merge

FOLDER = Path("config/ablation")
BASE_ARM = "base"


class Cell(NamedTuple):
    """One trained arm under one way of decoding."""

    start: str
    arm: str
    seed: int
    decode: str

    @property
    def trained(self) -> str:
        """Folder of the trained arm, below the run's."""
        return f"{self.start}/{self.arm}-{self.seed}"

    @property
    def name(self) -> str:
        """Evaluation of the cell, below the run's folder, without its ending."""
        return f"{self.trained}/eval/{self.decode}"


class Ablation:
    """Look-ups that rules need, for the `ablation` section of the configuration.

    An arm is the recipe of its name in config/ablation, under the overrides of its start and with the seed in
    every place that takes one. `base` is the recipe of the base that arms start from; it starts from nothing.
    """

    def __init__(self, section: dict[str, Any], root: Path):
        self.section, self.root = section, root

    def recipe(self, arm: str, start: str | None = None, seed: int | str = 0) -> Recipe:
        """The resolved recipe of an arm."""
        seeds = {"training": {"seed": int(seed), "data_seed": int(seed)}, "custom": {"sample_seed": int(seed)}}
        if start is None:
            overrides = {key: value for key, value in self.section["base"].items() if key not in ("model", "run")}
        else:
            overrides = self.section["overrides"][start]
        return load_recipe(self.root / FOLDER / f"{arm}.yaml", merge(overrides, seeds))

    def recipe_map(self, arm: str, start: str | None, seed: int | str) -> dict[str, Any]:
        """The same as plain values, for params."""
        return msgspec.to_builtins(self.recipe(arm, start, seed))

    def decodings(self, arm: str) -> list[str]:
        """Ways of decoding that differ for an arm: text integers have no distribution over bins."""
        every = self.section["decode"]
        return every if self.recipe(arm).custom.coord_tokens.enabled else every[:1]

    def cells(self) -> list[Cell]:
        """Every cell of the grid, starts outermost, decodings innermost."""
        return list(self._cells())

    def _cells(self) -> Iterator[Cell]:
        for start in self.section["starts"]:
            for arm in self.section["arms"]:
                for seed in self.section["seeds"]:
                    for decode in self.decodings(arm):
                        yield Cell(start, arm, seed, decode)
