"""Evaluation: COCO and LVIS AP, F1, calibration, bootstrap intervals and comparison of runs, without torch."""
