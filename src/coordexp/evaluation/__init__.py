"""Evaluation: COCO and LVIS AP, F1, calibration, bootstrap intervals and comparison of runs, without torch."""

from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions, options_from

__all__ = ["EvaluateOptions", "evaluate", "options_from"]
