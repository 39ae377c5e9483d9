"""Interface between the evaluation callback and what it scores with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import nn

from coordexp.recipe import Custom


class Scorer(ABC):
    """Predicts images with a model in training, and scores the predictions."""

    @abstractmethod
    def __init__(self, custom: Custom, model_dir: Path):
        """Load the images to evaluate and the tokenizer in `model_dir`."""

    @abstractmethod
    def predict(self, model: nn.Module, rank: int, world_size: int) -> list[Any]:
        """Predictions for every `world_size`-th image from `rank` on, by a model in evaluation mode."""

    def diagnose(self, model: nn.Module, rank: int, world_size: int) -> list[Any]:
        """Further measurements on every `world_size`-th image from `rank` on; none by default."""
        return []

    def diagnostics(self, measured: list[Any]) -> dict[str, float | None]:
        """Values from the measurements of all ranks."""
        return {}

    def caution(self, values: dict[str, float | None]) -> str | None:
        """What makes `values`, scores and diagnostics, less meaningful than they look; None for nothing."""
        return None

    @abstractmethod
    def score(self, predictions: list[Any]) -> dict[str, float | None]:
        """Values for all predictions, None if undefined; includes every `custom.detection_eval.metric`."""
