"""Attention of a decoding step: the query heads that share a key head become rows of one matrix product.

Grouped-query attention with an attention mask otherwise repeats keys and values for every query head, although a step
has only a few query rows and thousands of columns. Importing this module registers the attention with transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "coordexp_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention output [B, W, H, D], and no attention weights, as transformers expects of an attention function.

    query: [B, H, W, D]. key, value: [B, K, C, D], where each of K heads serves H / K consecutive query heads.
    attention_mask: bool [B, 1, W, C], True where a query sees a column.
    """
    batch, heads, width, size = query.shape
    group = heads // key.shape[1]
    rows = query.reshape(batch, key.shape[1], group * width, size)
    mask = attention_mask.repeat(1, 1, group, 1)
    output = functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return output.reshape(batch, heads, width, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def decoding_attention(language_model: nn.Module) -> Iterator[None]:
    """Use `grouped_attention` in every layer of a decoder stack for a while, whatever it was loaded with."""
    config: Any = language_model.config
    given = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = given


def avoid_planned_attention() -> None:
    """Switch off cuDNN's attention, which builds a plan for every new shape: nearly every decoding step has one.

    PyTorch 2.11 and later prefer it on Hopper GPUs.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
