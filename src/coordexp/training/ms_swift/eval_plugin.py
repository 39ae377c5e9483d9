"""Registers detection during training and rollouts with ms-swift."""

from coordexp.training.eval_callback import DetectionScorer
from coordexp.training.ms_swift import best_checkpoint, rollouts


def register() -> None:
    """Register `--callbacks coordexp_best coordexp_rollouts`."""
    best_checkpoint.register(DetectionScorer)
    rollouts.register()
