"""The published Qwen3 vocabulary, rebuilt from a package."""

from __future__ import annotations

import base64
import importlib.util
import itertools
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from coordexp.modeling import qwen_tokenizer


def qwen3_tokenizer() -> Tokenizer:
    """The published Qwen3 vocabulary (151,643 entries, 26 added tokens) from the ranks that dashscope ships."""
    spec = importlib.util.find_spec("dashscope")
    if spec is None:
        pytest.skip("dashscope is not installed")
    lines = (Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges = [tuple(map(spelled, parts)) for parts in (_parts(token, ranks) for token in ranks) if len(parts) == 2]
    return qwen_tokenizer.tokenizer_from_vocab({spelled(t): rank for t, rank in ranks.items()}, merges)


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The pieces that merging has reached just before `token` itself: its two halves for every multi-byte entry."""
    pieces, limit = [token[i : i + 1] for i in range(len(token))], ranks[token]
    while len(pieces) > 2:
        pairs = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(itertools.pairwise(pieces))]
        rank, i = min(pairs)
        if rank >= limit:
            break
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def _byte_letters() -> dict[int, str]:
    """The visible letter that byte-level BPE writes for each byte."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
