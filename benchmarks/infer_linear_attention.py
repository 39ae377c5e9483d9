"""Drafts with linear attention: a state that advances over accepted tokens, copies of the state, or no drafts.

    python benchmarks/infer_linear_attention.py [--images 8] [--objects 6] [--threads 1] [--runs 5]

Builds a small Qwen3.5 with three linear layers in every four, trains it on one answer per image, and generates these
answers in three ways, which alternate: as CoordExp does; with drafts and a copy of the state after every token that is
fed, as the recurrent rule of transformers computes it; and without drafts. Prints CPU seconds (minimum of the runs),
forward passes, and ratios of the seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from infer_speed import STYLE, answers, teach
from random_images import images
from torch import Tensor

from coordexp.inference.grammar.token_grammar import OpenGrammar
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt
from coordexp.modeling import tiny, vocab
from coordexp.modeling.families import gated_delta_net
from coordexp.modeling.families.gated_delta_net import GatedDeltaState

SIZES = {"hidden": 128, "layers": 4, "attention_interval": 4, "heads": 2, "kv_heads": 2, "head_dim": 128, "mlp": 256}


def token_by_token(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, decay: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of `gated_delta_net.delta_rule`, and a copy of the memory after every token [B, H, W, Dk, Dv]."""
    outputs, copies = [], []
    for now, factor in enumerate(decay.diff(dim=-1, prepend=torch.zeros_like(decay[..., :1])).exp().unbind(-1)):
        memory = memory * factor[..., None, None]
        held = (memory * key[:, :, now, :, None]).sum(-2)
        change = (value[:, :, now] - held) * beta[:, :, now, None]
        memory = memory + key[:, :, now, :, None] * change[:, :, None]
        outputs.append((memory * query[:, :, now, :, None]).sum(-2))
        copies.append(memory)
    return torch.stack(outputs, 2), torch.stack(copies, 2)


def take_copy(state: GatedDeltaState, accepted: Tensor) -> None:
    """`GatedDeltaState.accept` with the copies of `token_by_token`."""
    inputs, _, copies, _ = state.fed
    columns = accepted[:, None] + torch.arange(state.inputs.shape[-1])
    state.inputs = inputs.gather(2, columns[:, None].expand(-1, inputs.shape[1], -1))
    state.memory = copies[torch.arange(len(accepted)), :, accepted - 1]


@contextmanager
def with_copies() -> Iterator[None]:
    with (
        patch.object(gated_delta_net, "delta_rule", token_by_token),
        patch.object(GatedDeltaState, "accept", take_copy),
    ):
        yield


def without_drafts() -> AbstractContextManager[object]:
    return patch.object(OpenGrammar, "_draft", lambda *_: None)


WAYS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "state": nullcontext,
    "copies": with_copies,
    "no drafts": without_drafts,
}


def measure(predictors: dict[str, Predictor], runs: int) -> dict[str, object]:
    """`predictors`: one per way, as each compiles a grammar of its own."""
    shown = images(predictors["state"].options.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    passes, tokens = {}, {}
    for _ in range(runs + 1):  # the first run compiles the grammars
        for name, way in WAYS.items():
            predictor = predictors[name]
            before = predictor.decoder.forward_passes
            with way():
                began = time.process_time()
                found = predictor.answer(shown, [Prompt()] * len(shown))
                seconds[name].append(time.process_time() - began)
            passes[name] = predictor.decoder.forward_passes - before
            tokens[name] = [answer.tokens for answer in found]
    assert tokens["state"] == tokens["copies"] == tokens["no drafts"], "the answers differ"
    best = {name: min(measured[1:]) for name, measured in seconds.items()}
    return {
        "images": len(shown),
        "tokens": sum(map(len, tokens["state"])),
        "forward_passes": passes,
        "cpu_seconds": best,
        "ratio_copies": best["copies"] / best["state"],
        "ratio_no_drafts": best["no drafts"] / best["state"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(Path(folder) / "base", 7, family="qwen3_5", **SIZES)
        vocab.expand(Path(folder) / "base", Path(folder) / "expanded")
        options = PredictOptions(batch_size=chosen.images, max_new_tokens=64 * chosen.objects)
        predictor = Predictor.from_checkpoint(Path(folder) / "expanded", options, STYLE)
    steps = teach(predictor, images(chosen.images), answers(chosen.images, chosen.objects), chosen.steps)
    parts = (predictor.model, predictor.processor, predictor.ids, options, STYLE)
    predictors = {name: Predictor(*parts) for name in WAYS}
    print(json.dumps({"steps": steps, **measure(predictors, chosen.runs)}, indent=2))


if __name__ == "__main__":
    main()
