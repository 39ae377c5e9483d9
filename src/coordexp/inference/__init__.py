"""Inference with a trained checkpoint: constrained decoding, scores, calibration, sharded prediction, overlays."""
