"""Inputs created once per session: records of generated shapes, and a tiny expanded Qwen3-VL."""

import signal
from pathlib import Path

import pytest

from coordexp.datasets import convert, download, tokenize
from coordexp.modeling import tiny, vocab

# A suite that was started in the background inherits an ignored Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory) -> Path:
    """Folder with `{train,val}.jsonl`, `{train,val}.coord.jsonl` and their images: 24 and 8 of 96x96."""
    folder = tmp_path_factory.mktemp("shapes")
    splits = {"train": {"count": 24, "seed": 1}, "val": {"count": 8, "seed": 2}}
    for split in splits:
        manifest = folder / "raw" / f"{split}.source.json"
        download.provide("shapes", {"format": "shapes", "splits": splits}, split, folder / "raw", manifest)
        convert.convert(
            manifest,
            folder / f"{split}.jsonl",
            folder / "images" / split,
            convert.ConvertOptions(),
            9,
            folder / f"{split}.stats.json",
        )
        tokenize.tokenize(folder / f"{split}.jsonl", folder / f"{split}.coord.jsonl")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A small real Qwen3-VL checkpoint with coordinate tokens."""
    folder = tmp_path_factory.mktemp("model")
    tiny.build(folder / "base", seed=7)
    vocab.expand(folder / "base", folder / "expanded")
    return folder / "expanded"
