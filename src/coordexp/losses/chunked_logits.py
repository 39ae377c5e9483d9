"""One chunked pass over the logits for all terms that need them.

All terms are functions of three things: the log-sum-exp over the vocabulary, the logits of the target tokens, and
the 1,000 coordinate logits. Reading them a few rows at a time keeps a float32 copy of the vocabulary axis for those
rows only, and a single backward pass writes a single gradient buffer instead of one per term.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from coordexp.records import COORD_BINS
from coordexp.runtime import tuning


class GatheredLogits(NamedTuple):
    """Float32 values at N supervised rows, S of which predict a coordinate token.

    lse: [N] log-sum-exp over the vocabulary. target: [P] logits of the text targets. coord: [S, 1000].
    """

    lse: torch.Tensor
    target: torch.Tensor
    coord: torch.Tensor


def gather_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    text_targets: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    coord_start: int,
) -> GatheredLogits:
    """Read `logits` [M, V] at the increasing `rows` [N] int64.

    text_targets: (positions [P] into `rows`, ids [P]), pairs without repetition. slots: [S] positions into `rows` that
    predict a coordinate. Both kinds of positions are in increasing order. coord_start: id of the first coordinate.
    """
    return GatheredLogits(*_GatherLogits.apply(logits, rows, *text_targets, slots, coord_start))


class _GatherLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, rows, positions, ids, slots, coord_start):  # type: ignore[override]
        lse = torch.empty(rows.numel(), dtype=torch.float32, device=logits.device)
        for block, part in _blocks(rows, logits):
            lse[part] = torch.logsumexp(logits[block].float(), dim=-1)
        target = logits[rows[positions], ids].float()
        # Answers in text integers have no slots, and their vocabulary may have no coordinate tokens.
        columns = slice(coord_start, coord_start + COORD_BINS) if slots.numel() else slice(0)
        coord = logits[rows[slots], columns].float().reshape(-1, COORD_BINS)
        ctx.save_for_backward(logits, rows, positions, ids, slots, lse)
        ctx.columns = columns
        return lse, target, coord

    @staticmethod
    def backward(ctx: Any, grad_lse, grad_target, grad_coord):  # type: ignore[override]
        logits, rows, positions, ids, slots, lse = ctx.saved_tensors
        grad = torch.empty_like(logits)
        end = 0
        for block, part in _blocks(rows, logits):
            in_place = grad[block] if grad.dtype == torch.float32 else None
            z = torch.sub(logits[block].float(), lse[part, None], out=in_place).exp_().mul_(grad_lse[part, None])
            text, coord = _within(positions, part), _within(slots, part)
            z[positions[text] - part.start, ids[text]] += grad_target[text]
            if coord.start < coord.stop:
                z[slots[coord] - part.start, ctx.columns] += grad_coord[coord]
            if in_place is None:
                grad[block] = z.to(grad.dtype)  # summed in float32: the two softmaxes of coord_mass nearly cancel
            grad[end : block.start] = 0
            end = block.stop
        grad[end:] = 0
        return grad, None, None, None, None, None


def _blocks(rows: torch.Tensor, logits: torch.Tensor) -> list[tuple[slice, slice]]:
    """(rows of the logits, positions in `rows`) of contiguous runs of rows, cut to chunks; nothing is gathered."""
    on_cpu = logits.device.type == "cpu"
    chunk = tuning.LOGITS_PER_CHUNK if on_cpu else tuning.ACCELERATOR_LOGITS_PER_CHUNK
    size = max(1, chunk // logits.shape[-1])
    gaps = ((rows[1:] - rows[:-1]) != 1).nonzero().squeeze(-1) + 1
    edges = [0, *gaps.tolist(), rows.numel()]
    starts = rows[edges[:-1]].tolist() if rows.numel() else []
    return [
        (slice(start + at - first, start + min(at + size, last) - first), slice(at, min(at + size, last)))
        for start, first, last in zip(starts, edges, edges[1:], strict=False)
        for at in range(first, last, size)
    ]


def _within(positions: torch.Tensor, part: slice) -> slice:
    """The run of sorted `positions` that lies within `part`."""
    bounds = torch.tensor([part.start, part.stop], device=positions.device)
    return slice(*torch.searchsorted(positions, bounds).tolist())
