"""One pass over the logits for every term that needs them.

Text cross-entropy, the gate and all coordinate terms are functions of three things: the
log-sum-exp over the vocabulary, the logit of the label, and the 1,000 coordinate logits. Reading
them in row chunks keeps a float32 copy of the vocabulary axis for a chunk only, and one backward
pass writes one gradient buffer instead of one for each term.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from coordexp.contract import COORD_BINS

CHUNK_ROWS = 1024


class Split(NamedTuple):
    """What the terms need; float32. N supervised rows, S of them predict a coordinate token.

    lse: [N] logsumexp over the vocabulary. picked: [N] logit of the label. coord: [S, 1000].
    """

    lse: torch.Tensor
    picked: torch.Tensor
    coord: torch.Tensor


def split_logits(
    logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, is_slot: torch.Tensor, coord_start: int
) -> Split:
    """Read `logits` [M, V] at `rows` [N] with `labels` [N]; `is_slot` [N] marks rows that predict a coordinate."""
    return Split(*_SplitLogits.apply(logits, rows, labels, is_slot, coord_start))


class _SplitLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, rows, labels, is_slot, coord_start):  # type: ignore[override]
        lse = torch.empty(rows.numel(), dtype=torch.float32, device=logits.device)
        for part in _chunks(rows.numel()):
            lse[part] = torch.logsumexp(logits[rows[part]].float(), dim=-1)
        picked = logits[rows, labels].float()
        slot_rows = rows[is_slot]
        coord = logits[slot_rows, coord_start : coord_start + COORD_BINS].float()
        ctx.save_for_backward(logits, rows, labels, slot_rows, lse)
        ctx.coord_start = coord_start
        return lse, picked, coord

    @staticmethod
    def backward(ctx: Any, grad_lse, grad_picked, grad_coord):  # type: ignore[override]
        logits, rows, labels, slot_rows, lse = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        for part in _chunks(rows.numel()):
            softmax = torch.exp(logits[rows[part]].float() - lse[part, None])
            softmax *= grad_lse[part, None]
            softmax[torch.arange(softmax.shape[0], device=softmax.device), labels[part]] += grad_picked[part]
            grad[rows[part]] = softmax.to(grad.dtype)
        columns = slice(ctx.coord_start, ctx.coord_start + COORD_BINS)
        grad[slot_rows, columns] += grad_coord.to(grad.dtype)
        return grad, None, None, None, None


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + CHUNK_ROWS) for start in range(0, rows, CHUNK_ROWS)]
