"""Checkpoints: fetch or build, expand the vocabulary, coordinate offsets, merge; weights are streamed."""
