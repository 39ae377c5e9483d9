"""Checkpoints: build, fetch, expand the vocabulary, coordinate offsets, merge. Streams; never loads a whole model."""
