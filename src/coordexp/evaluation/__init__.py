"""Scoring: COCO and LVIS numbers, F1, calibration, intervals, comparison. Needs neither torch nor transformers."""

from coordexp.evaluation.evaluate import EvaluateOptions, evaluate, options_from

__all__ = ["EvaluateOptions", "evaluate", "options_from"]
