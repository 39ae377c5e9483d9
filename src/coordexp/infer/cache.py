"""A key/value cache whose rows grow independently: row `r` writes its next tokens right after its own last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

BLOCK = 256  # columns that the buffers grow by at least


class RowCache:
    """Stands where the model expects a cache. Columns 0..`prompt`-1 hold the left-padded prompts.

    lengths: int64 [B], tokens kept behind the prompt. padding: int64 [B], unused columns before each prompt.
    Tokens written beyond a row's length are overwritten by its next ones, so taking some back costs nothing.
    """

    def __init__(self, prefilled: DynamicCache, padding: torch.Tensor):
        self.keys = [layer.keys for layer in prefilled.layers]
        self.values = [layer.values for layer in prefilled.layers]
        self.prompt = self.keys[0].shape[2]
        self.padding = padding
        self.lengths = torch.zeros_like(padding)
        self._columns = self._rows = torch.empty(0)
        self._used = self.prompt

    def begin(self, width: int) -> torch.Tensor:
        """Make room for `width` tokens a row; the attention mask bool [B, 1, width, columns in use]."""
        device = self.lengths.device
        self._columns = self.prompt + self.lengths[:, None] + torch.arange(width, device=device)
        self._rows = torch.arange(len(self.lengths), device=device)[:, None]
        self._used = self.prompt + int(self.lengths.max()) + width
        if self._used > self.keys[0].shape[2]:
            self._grow(max(self._used + BLOCK, self.keys[0].shape[2] * 3 // 2))
        column = torch.arange(self._used, device=device)
        visible = (column >= self.padding[:, None, None]) & (column <= self._columns[:, :, None])
        return visible[:, None]

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store `key` and `value` [B, heads, width, D] of the running step; everything stored so far."""
        self.keys[layer][self._rows, :, self._columns] = key.transpose(1, 2)
        self.values[layer][self._rows, :, self._columns] = value.transpose(1, 2)
        return self.keys[layer][:, :, : self._used], self.values[layer][:, :, : self._used]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        index = torch.tensor(rows, device=self.lengths.device)
        self.keys = [keys.index_select(0, index) for keys in self.keys]
        self.values = [values.index_select(0, index) for values in self.values]
        self.padding, self.lengths = self.padding[index], self.lengths[index]

    def _grow(self, columns: int) -> None:
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros(*old.shape[:2], columns, old.shape[3])
                new[:, :, : old.shape[2]] = old
                buffers[layer] = new
