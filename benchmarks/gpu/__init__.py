"""Measurements on one GPU: attention, training steps and decoding of a checkpoint of the true size."""
