"""Real inputs, made once a session: generated shapes as records, and a tiny expanded Qwen3-VL."""

import signal
from pathlib import Path

import pytest

from coordexp.datasets import convert, shapes, tokenize
from coordexp.modeling import tiny, vocab
from coordexp.runtime import io

# A suite that was started in the background inherits an ignored Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory) -> Path:
    """Folder with `{train,val}.jsonl`, `{train,val}.coord.jsonl` and their images: 24 and 8 of 96x96."""
    folder = tmp_path_factory.mktemp("shapes")
    for split, count, seed in (("train", 24, 1), ("val", 8, 2)):
        source = shapes.generate(shapes.ShapesOptions(count=count, seed=seed), split, folder / "raw")
        io.write_json(folder / "raw" / f"{split}.source.json", source)
        convert.convert(
            folder / "raw" / f"{split}.source.json",
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
