"""Decoding: our decoder and `generate` at several batch sizes, attention kernels, and the image processor.

Random weights never write an answer that ends. Everything is computed, and then a script decides: every description is
one token, and an answer ends after a given number of objects.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.rows import Run, peak_gb, reset_peak, seconds_of, write_row

OBJECTS, TOY_OBJECTS = 13, 2
NEW_TOKENS, TOY_NEW_TOKENS = 96, 8
HEADS, KV_HEADS, SIZE = 32, 8, 128  # of the 4B shape


def measure(run: Run, batch: str) -> None:
    """Objects and tokens per second of our decoder with `batch` answers in progress."""
    count = min(int(batch), 3) if run.toy else int(batch)
    predictor = _scripted(run, TOY_OBJECTS if run.toy else OBJECTS)
    _answers(run, predictor, count, count)  # warm up
    _answers(run, predictor, 2 * count if count > 1 else 4, count, label=f"decode {count}")


def attention(run: Run) -> None:
    """A decoding step whose keys grow, and training at new lengths, with and without cuDNN."""
    import torch

    batch, columns = (2, 40) if run.toy else (16, 1001)
    options = {"device": run.device, "dtype": torch.float32 if run.toy else torch.bfloat16}
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for folded in (False, True):
            times = []
            for used in range(columns, columns + 12):
                query = torch.randn(batch, HEADS, 4, SIZE, **options)
                key, value = (torch.randn(batch, KV_HEADS, used, SIZE, **options) for _ in range(2))
                mask = torch.ones(batch, 1, 4, used, dtype=torch.bool, device=run.device)
                call = _folded if folded else _repeated
                times.append(seconds_of(lambda a=(query, key, value, mask), f=call: f(*a), run.device))
            write_row(run, step="attention", cudnn=cudnn, folded=folded, ms=[round(1e3 * t, 2) for t in times])
        times = []
        for length in (columns, columns + 3, columns + 31, columns + 31):
            parts = [torch.randn(1, HEADS, length, SIZE, requires_grad=True, **options) for _ in range(3)]
            times.append(seconds_of(lambda p=parts: _causal(*p), run.device))
        write_row(run, step="attention in training", cudnn=cudnn, ms=[round(1e3 * t, 2) for t in times])


def generate(run: Run) -> None:
    """Tokens per second of transformers' `generate` on 16 images."""
    predictor = _scripted(run, 1)
    images = _images(run, 3 if run.toy else 16)
    inputs = predictor.encode(images, [predictor.prompt_text()] * len(images))
    new = TOY_NEW_TOKENS if run.toy else NEW_TOKENS
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    predictor.model.generate(**inputs, **options)
    seconds = seconds_of(lambda: predictor.model.generate(**inputs, **options), run.device)
    rates = {"tokens_per_second": round(new * len(images) / seconds, 1), "ms_per_pass": round(1e3 * seconds / new, 2)}
    write_row(run, step="generate", images=len(images), **rates)


def processor(run: Run) -> None:
    """Milliseconds per image of the processor, which prepares what the model reads."""
    predictor = _scripted(run, 1)
    images = _images(run, 3 if run.toy else 16)
    texts = [predictor.prompt_text()] * len(images)
    predictor.encode(images[:1], texts[:1])
    seconds = seconds_of(lambda: predictor.encode(images, texts), run.device)
    write_row(run, step="processor", ms_per_image=round(1e3 * seconds / len(images), 2))


def _scripted(run: Run, objects: int) -> Any:
    """A predictor whose answers have `objects` objects of one-token descriptions."""
    from coordexp.answers.render import PromptStyle
    from coordexp.inference.options import PredictOptions
    from coordexp.inference.predictor import Predictor
    from coordexp.inference.token_chooser import TokenChooser

    options = PredictOptions(max_new_tokens=4096, max_repeats=10**6)
    predictor = Predictor.from_checkpoint(run.model, options, PromptStyle(), run.device)
    word = predictor.vocabulary.tokenize("cat")[0]

    class Scripted(TokenChooser):
        def choose(self, logits, open_choices):
            chosen = super().choose(logits, open_choices)
            pairs = zip(open_choices, chosen, strict=True)
            return [_replace(asked, choice, word, objects) for asked, choice in pairs]

    predictor.decoder.chooser = Scripted(predictor.ids, options, predictor.decoder.device)
    return predictor


def _replace(open_choice: Any, choice: Any, word: int, objects: int) -> Any:
    """The token of the script in place of the model's, with its log probability."""
    node, state = open_choice.node, open_choice.state
    token = choice.token
    if node.kind == "text":
        written = word in (state._desc_run[-1:] or [p.token for p in state.pending[-1:]])
        token = min(node.finish) if written and node.finish else word
    elif node.kind == "choice" and node.closes:
        more = [token for token in node.follow if token not in node.closes]
        token = (more if len(state.objects) < objects else sorted(node.closes))[0]
    return choice._replace(token=token)


def _answers(run: Run, predictor: Any, count: int, capacity: int, label: str = "") -> None:
    from coordexp.inference.predictor import Request
    from coordexp.inference.prompts import Prompt

    images = _images(run, count)
    predictor.decoder.forward_passes = 0
    reset_peak(run.device)
    states: list[Any] = []

    def decode() -> None:
        requests = (Request(n, image, Prompt()) for n, image in enumerate(images))
        states.extend(state for finished in predictor.stream(requests, capacity) for _, state in finished)

    seconds = seconds_of(decode, run.device)
    if not label:
        return
    objects, tokens = (sum(len(getattr(s, name)) for s in states) for name in ("objects", "tokens"))
    passes = predictor.decoder.forward_passes
    write_row(
        run,
        step="decode",
        label=label,
        images=count,
        in_progress=capacity,
        seconds=round(seconds, 2),
        objects_per_second=round(objects / seconds, 1),
        tokens_per_second=round(tokens / seconds, 1),
        passes=passes,
        ms_per_pass=round(1e3 * seconds / passes, 2),
        objects=objects,
        tokens=tokens,
        peak_gb=peak_gb(run.device),
    )


def _images(run: Run, count: int) -> list[Any]:
    from PIL import Image

    return [Image.open(run.work / f"images/{n % 4}.jpg").convert("RGB") for n in range(count)]


def _repeated(query: Any, key: Any, value: Any, mask: Any) -> Any:
    from torch.nn import functional

    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _causal(query: Any, key: Any, value: Any) -> None:
    from torch.nn import functional

    functional.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()


def _folded(query: Any, key: Any, value: Any, mask: Any) -> Any:
    from torch import nn

    from coordexp.inference.attention import grouped_attention

    return grouped_attention(nn.Module(), query, key, value, mask)
