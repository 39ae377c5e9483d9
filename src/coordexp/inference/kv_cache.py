"""A key/value cache whose rows grow independently: each row writes its next tokens right after its own last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from coordexp.modeling.families import RecurrentState
from coordexp.runtime import tuning


def columns_multiple(device: torch.device) -> int:
    """What the columns in use are rounded up to: on a GPU a new shape costs more than a few masked columns."""
    return 1 if device.type == "cpu" else tuning.ACCELERATOR_COLUMNS


class RowCache:
    """Key/value cache for batches whose rows accept different numbers of tokens per step; passed as `past_key_values`.

    Each row holds its left-padded prompt, followed by the tokens accepted so far. Tokens written beyond a row's length
    are overwritten by its next ones, so rejecting tokens needs no work: the caller passes the number of accepted tokens
    to `accept` after each step. Layers with linear attention have recurrent states instead of keys and values.

    keys, values: [B, heads, columns, D] by layer. states: by layer; empty unless the family has linear attention.
    padding: int64 [B], unused columns before each prompt.
    ends: int64 [B], column after each prompt.
    lengths: int64 [B], accepted tokens after each prompt.
    """

    def __init__(self, prefilled: DynamicCache, padding: torch.Tensor, states: dict[int, RecurrentState] | None = None):
        self.states = states or {}
        layers = {index: layer for index, layer in enumerate(prefilled.layers) if index not in self.states}
        self.keys = {index: layer.keys for index, layer in layers.items()}
        self.values = {index: layer.values for index, layer in layers.items()}
        self.padding = padding
        self.ends = torch.full_like(padding, self._width)
        self.lengths = torch.zeros_like(padding)
        self._columns = self._rows = torch.empty(0)
        self._used = 0

    @property
    def _width(self) -> int:
        """Number of columns, the same in every layer with keys and values."""
        return next(iter(self.keys.values())).shape[2]

    def begin(self, width: int) -> torch.Tensor:
        """Reserve `width` tokens per row for one step; its attention mask, bool [B, 1, width, columns in use]."""
        device = self.lengths.device
        first = self.ends + self.lengths
        self._columns = first[:, None] + torch.arange(width, device=device)
        self._rows = torch.arange(len(first), device=device)[:, None]
        multiple = columns_multiple(device)
        self._used = -(-(int(first.max()) + width) // multiple) * multiple
        if self._used > self._width:
            self._widen(max(self._used + tuning.CACHE_COLUMNS, self._width * 3 // 2))
        column = torch.arange(self._used, device=device)
        visible = (column >= self.padding[:, None, None]) & (column <= self._columns[:, :, None])
        return visible[:, None]

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store `key` and `value` [B, heads, width, D] of the current step; returns all columns in use.

        This is the method of `transformers.Cache` that attention layers call.
        """
        self.keys[layer][self._rows, :, self._columns] = key.transpose(1, 2)
        self.values[layer][self._rows, :, self._columns] = value.transpose(1, 2)
        return self.keys[layer][:, :, : self._used], self.values[layer][:, :, : self._used]

    def accept(self, accepted: torch.Tensor) -> None:
        """Accept the first `accepted` [B] tokens of the step, at least one per row."""
        self.lengths = self.lengths + accepted
        for state in self.states.values():
            state.accept(accepted)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only `rows`, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.lengths.device)
        for buffers in (self.keys, self.values):
            for layer, old in buffers.items():
                buffers[layer] = old.index_select(0, index)
        for state in self.states.values():
            state.keep(index)
        self.padding, self.ends, self.lengths = self.padding[index], self.ends[index], self.lengths[index]

    def join(self, other: RowCache) -> None:
        """Append the rows of `other`, which must not be used afterwards."""
        columns = max(self._width, other._width)
        self._widen(columns)
        other._widen(columns)
        for layer in self.keys:
            self.keys[layer] = torch.cat([self.keys[layer], other.keys[layer]])
            self.values[layer] = torch.cat([self.values[layer], other.values[layer]])
        for layer, state in self.states.items():
            state.join(other.states[layer])
        self.padding = torch.cat([self.padding, other.padding])
        self.ends = torch.cat([self.ends, other.ends])
        self.lengths = torch.cat([self.lengths, other.lengths])

    def _widen(self, columns: int) -> None:
        for buffers in (self.keys, self.values):
            for layer, old in buffers.items():
                if old.shape[2] < columns:
                    new = old.new_zeros(*old.shape[:2], columns, old.shape[3])
                    new[:, :, : old.shape[2]] = old
                    buffers[layer] = new
