"""The engines that `PredictOptions.engine` names."""

from __future__ import annotations

from pathlib import Path

from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import BasePredictor, Predictor
from coordexp.inference.vllm_engine.settings import check_installed
from coordexp.runtime.errors import ConfigError, located


def check_engine(options: PredictOptions) -> None:
    """ConfigError, with the remedy, if the engine that `options` name is not installed."""
    if options.engine == "vllm":
        check_installed()


def open_predictor(
    folder: str | Path, options: PredictOptions, style: PromptStyle, device: str | None = None
) -> BasePredictor:
    """Load a merged checkpoint folder with `options.engine`; ConfigError if that is not installed.

    device: for transformers, `cpu`, `cuda`, ...; default: the GPU, if any. vLLM uses the first visible GPU.
    """
    if options.engine == "transformers":
        return Predictor.from_checkpoint(folder, options, style, device)
    from coordexp.inference.vllm_engine.predictor import VllmPredictor

    if device is not None:
        fix = "omit it; set CUDA_VISIBLE_DEVICES to choose a GPU"
        raise ConfigError(located("vLLM chooses the device itself", field="device", found=device, fix=fix))
    return VllmPredictor.from_checkpoint(folder, options, style)
