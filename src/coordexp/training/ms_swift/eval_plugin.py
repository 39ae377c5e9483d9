"""Registers detection during training with ms-swift."""

from coordexp.training.eval_callback import DetectionScorer
from coordexp.training.ms_swift import best_checkpoint


def register() -> None:
    """Register `--callbacks coordexp_best`."""
    best_checkpoint.register(DetectionScorer)
