"""Error of quantised weights in coordinate bins: a trained checkpoint with its weights rounded to int8 or int4.

    python benchmarks/model_quantisation.py results/shapes_9 [--images 100] [--out FILE]

Weights are rounded to the nearest value of a symmetric grid, with one scale per group of 32 inputs (int4) or per output
(int8), as in weight-only quantisation without calibration data, and to bfloat16. The float32 model and each variant
read the same images and answers, those of `eval/predictions.jsonl`. At every coordinate token, the table has the change
of the decoded coordinate (`decode: local`) in bins, and the share of tokens whose most likely bin changes. Variants
differ in what is quantised: the linear layers, the embedding and output rows of the coordinate tokens, or all.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.inference.coordinates import DECODERS, CoordinateOptions
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.records import COORD_BINS
from coordexp.runtime.io import write_json

GROUP = 32
BITS = {"int8": 8, "int4": 4}


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """`weight` [out, in] after a round trip through the format."""
    if kind == "bfloat16":
        return weight.bfloat16().to(weight.dtype)
    top = 2 ** (BITS[kind] - 1) - 1
    grouped = kind == "int4" and weight.shape[1] % GROUP == 0
    groups = weight.reshape(-1, GROUP) if grouped else weight
    scale = groups.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / top
    return ((groups / scale).round().clamp(-top, top) * scale).reshape(weight.shape)


@torch.no_grad()
def quantise(model: torch.nn.Module, kind: str, what: str, ids: torch.Tensor) -> torch.nn.Module:
    """A copy of `model` with its `linear` layers, its `coordinate rows` or `all` weight matrices quantised."""
    model = copy.deepcopy(model)
    table = model.get_input_embeddings().weight
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight is not table and what != "coordinate rows":
            layer.weight.copy_(rounded(layer.weight, kind))
    if what != "linear layers":
        rows = ids if what == "coordinate rows" else torch.arange(len(table))
        table[rows] = rounded(table[rows], kind)
    return model


@torch.inference_mode()
def distributions(model: torch.nn.Module, batches: list[dict], ids: torch.Tensor) -> torch.Tensor:
    """Distribution over the bins at every coordinate token of the answers; float32 [N, 1000]."""
    found = []
    for batch in batches:
        logits = model(**batch).logits[:, :-1]
        at = torch.isin(batch["input_ids"][:, 1:], ids)
        found.append(logits[at][:, ids].float().softmax(-1))
    return torch.cat(found)


def coordinates(probs: torch.Tensor) -> torch.Tensor:
    return DECODERS["local"](probs, probs.argmax(-1), CoordinateOptions())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.run / "merged", PredictOptions(), PromptStyle(), "cpu")
    predictor.model.float()
    ids = torch.tensor([predictor.ids.id_of(k) for k in range(COORD_BINS)])
    batches = read_batches(args.run, predictor, args.images)
    exact = distributions(predictor.model, batches, ids)
    rows = []
    for kind in ("bfloat16", "int8", "int4"):
        for what in ("coordinate rows", "linear layers", "all"):
            probs = distributions(quantise(predictor.model, kind, what, ids), batches, ids)
            error = (coordinates(probs) - coordinates(exact)).abs()
            rows.append(
                {
                    "format": kind,
                    "quantised": what,
                    "mean_bins": round(error.mean().item(), 3),
                    "p95_bins": round(error.quantile(0.95).item(), 2),
                    "max_bins": round(error.max().item(), 1),
                    "mode_changed": round((probs.argmax(-1) != exact.argmax(-1)).float().mean().item(), 3),
                    "bias_bins": round((coordinates(probs) - coordinates(exact)).mean().item(), 3),
                }
            )
            print(rows[-1], flush=True)
    report = {"images": args.images, "coordinates": len(exact), "rows": rows}
    if args.out:
        write_json(args.out, report)


def read_batches(run: Path, predictor: Predictor, count: int) -> list[dict]:
    """Model inputs of the first images with their predicted answers, 25 at a time."""
    texts = [json.loads(line)["text"] for line in (run / "eval/predictions.jsonl").read_text().splitlines()[:count]]
    records = [json.loads(line) for line in (run / "data/val.jsonl").read_text().splitlines()[:count]]
    images = [Image.open(run / "data" / record["images"][0]).convert("RGB") for record in records]
    prompts = [predictor.prompt_text() + text for text in texts]
    return [predictor.encode(images[i : i + 25], prompts[i : i + 25]) for i in range(0, len(images), 25)]


if __name__ == "__main__":
    main()
