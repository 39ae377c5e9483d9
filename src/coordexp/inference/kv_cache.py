"""A key/value cache whose rows grow independently: each row writes its next tokens right after its own last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from coordexp.runtime import tuning


def columns_multiple(device: torch.device) -> int:
    """What the columns in use are rounded up to: on a GPU a new shape costs more than a few masked columns."""
    return 1 if device.type == "cpu" else tuning.ACCELERATOR_COLUMNS


class RowCache:
    """Key/value cache for batches whose rows accept different numbers of tokens per step; passed as `past_key_values`.

    Each row holds its left-padded prompt, followed by the tokens accepted so far. Tokens written beyond a row's length
    are overwritten by its next ones, so rejecting tokens needs no work: the caller adds the number of accepted tokens
    to `lengths` after each step.

    keys, values: per layer [B, heads, columns, D].
    padding: int64 [B], unused columns before each prompt.
    ends: int64 [B], column after each prompt.
    lengths: int64 [B], accepted tokens after each prompt.
    """

    def __init__(self, prefilled: DynamicCache, padding: torch.Tensor):
        self.keys = [layer.keys for layer in prefilled.layers]
        self.values = [layer.values for layer in prefilled.layers]
        self.padding = padding
        self.ends = torch.full_like(padding, self.keys[0].shape[2])
        self.lengths = torch.zeros_like(padding)
        self._columns = self._rows = torch.empty(0)
        self._used = 0

    def begin(self, width: int) -> torch.Tensor:
        """Reserve `width` tokens per row for one step; its attention mask, bool [B, 1, width, columns in use]."""
        device = self.lengths.device
        first = self.ends + self.lengths
        self._columns = first[:, None] + torch.arange(width, device=device)
        self._rows = torch.arange(len(first), device=device)[:, None]
        multiple = columns_multiple(device)
        self._used = -(-(int(first.max()) + width) // multiple) * multiple
        if self._used > self.keys[0].shape[2]:
            self._widen(max(self._used + tuning.CACHE_COLUMNS, self.keys[0].shape[2] * 3 // 2))
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

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only `rows`, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.lengths.device)
        self.keys = [keys.index_select(0, index) for keys in self.keys]
        self.values = [values.index_select(0, index) for values in self.values]
        self.padding, self.ends, self.lengths = self.padding[index], self.ends[index], self.lengths[index]

    def join(self, other: RowCache) -> None:
        """Append the rows of `other`, which must not be used afterwards."""
        columns = max(self.keys[0].shape[2], other.keys[0].shape[2])
        self._widen(columns)
        other._widen(columns)
        self.keys = [torch.cat(pair) for pair in zip(self.keys, other.keys, strict=True)]
        self.values = [torch.cat(pair) for pair in zip(self.values, other.values, strict=True)]
        self.padding = torch.cat([self.padding, other.padding])
        self.ends = torch.cat([self.ends, other.ends])
        self.lengths = torch.cat([self.lengths, other.lengths])

    def _widen(self, columns: int) -> None:
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                if old.shape[2] < columns:
                    new = old.new_zeros(*old.shape[:2], columns, old.shape[3])
                    new[:, :, : old.shape[2]] = old
                    buffers[layer] = new
