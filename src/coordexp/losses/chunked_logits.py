"""One pass over the logits for every term that needs them.

Text cross-entropy, the coord_mass and all coordinate terms are functions of three things: the
log-sum-exp over the vocabulary, the logits of the wanted ids, and the 1,000 coordinate logits. Reading
them a few rows at a time keeps a float32 copy of the vocabulary axis for these rows only, and one backward
pass writes one gradient buffer instead of one for each term.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from coordexp.records import COORD_BINS

CHUNK = {"cpu": 1 << 18}  # logits read at once: they and what is made of them stay in the cache of a core
ACCELERATOR_CHUNK = 1 << 27


class Split(NamedTuple):
    """What the terms need; float32. N supervised rows, S of them predict a coordinate token.

    lse: [N] logsumexp over the vocabulary. picked: [P] wanted logits. coord: [S, 1000].
    """

    lse: torch.Tensor
    picked: torch.Tensor
    coord: torch.Tensor


def split_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    wanted: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    coord_start: int,
) -> Split:
    """Read `logits` [M, V] at `rows` [N] int64, which increase.

    wanted: (places [P] into `rows`, ids [P]), pairs without repetition: the logits that text targets name.
    slots: [S] places into `rows` that predict a coordinate. Places of both are in increasing order.
    """
    return Split(*_SplitLogits.apply(logits, rows, *wanted, slots, coord_start))


class _SplitLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, rows, places, ids, slots, coord_start):  # type: ignore[override]
        lse = torch.empty(rows.numel(), dtype=torch.float32, device=logits.device)
        for block, part in _blocks(rows, logits):
            lse[part] = torch.logsumexp(logits[block].float(), dim=-1)
        picked = logits[rows[places], ids].float()
        # text integers: no slot, and perhaps a vocabulary without coordinate tokens
        columns = slice(coord_start, coord_start + COORD_BINS) if slots.numel() else slice(0)
        coord = logits[rows[slots], columns].float().reshape(-1, COORD_BINS)
        ctx.save_for_backward(logits, rows, places, ids, slots, lse)
        ctx.columns = columns
        return lse, picked, coord

    @staticmethod
    def backward(ctx: Any, grad_lse, grad_picked, grad_coord):  # type: ignore[override]
        logits, rows, places, ids, slots, lse = ctx.saved_tensors
        grad = torch.empty_like(logits)
        end = 0
        for block, part in _blocks(rows, logits):
            own = grad[block] if grad.dtype == torch.float32 else None
            z = torch.sub(logits[block].float(), lse[part, None], out=own).exp_().mul_(grad_lse[part, None])
            text, coord = _within(places, part), _within(slots, part)
            z[places[text] - part.start, ids[text]] += grad_picked[text]
            if coord.start < coord.stop:
                z[slots[coord] - part.start, ctx.columns] += grad_coord[coord]
            if own is None:
                grad[block] = z.to(grad.dtype)  # summed in float32: the coord_mass's two softmaxes nearly cancel
            grad[end : block.start] = 0
            end = block.stop
        grad[end:] = 0
        return grad, None, None, None, None, None


def _blocks(rows: torch.Tensor, logits: torch.Tensor) -> list[tuple[slice, slice]]:
    """(rows of the logits, places in `rows`): runs without a gap, so that nothing is gathered, cut to a chunk."""
    size = max(1, CHUNK.get(logits.device.type, ACCELERATOR_CHUNK) // logits.shape[-1])
    gaps = ((rows[1:] - rows[:-1]) != 1).nonzero().squeeze(-1) + 1
    edges = [0, *gaps.tolist(), rows.numel()]
    starts = rows[edges[:-1]].tolist() if rows.numel() else []
    return [
        (slice(start + at - first, start + min(at + size, last) - first), slice(at, min(at + size, last)))
        for start, first, last in zip(starts, edges, edges[1:], strict=False)
        for at in range(first, last, size)
    ]


def _within(places: torch.Tensor, part: slice) -> slice:
    """The run of sorted `places` that lies in a part of the rows."""
    first, last = torch.searchsorted(places, torch.tensor([part.start, part.stop], device=places.device)).tolist()
    return slice(first, last)
