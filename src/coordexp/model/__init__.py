"""Checkpoints: building, fetching, growing the vocabulary, coordinate offsets, merging. Streams, never loads a model."""
