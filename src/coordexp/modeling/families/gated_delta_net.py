"""Decoding steps of Qwen3.5's linear attention, whose rows accept different numbers of the tokens of a step.

transformers advances the recurrent state over every token that is fed. Here a step computes its outputs without
changing the state, and keeps what each token would add to it: then the state advances over the accepted tokens only,
by one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN


class FedTokens(NamedTuple):
    """The tokens of a step, W per row: convolution inputs [B, C, K - 1 + W], keys [B, H, W, Dk], the change of the
    values that each token writes [B, H, W, Dv], and the logarithm of the decay since the step began [B, H, W].
    """

    inputs: Tensor
    keys: Tensor
    written: Tensor
    decay: Tensor


class GatedDeltaState:
    """State of one layer after the accepted tokens, per row of the batch.

    inputs: [B, C, K - 1], the last inputs of the convolution, whose kernel has K columns.
    memory: float32 [B, H, Dk, Dv].
    """

    def __init__(self, inputs: Tensor, memory: Tensor):
        self.inputs, self.memory = inputs, memory
        self.fed: FedTokens | None = None

    def accept(self, accepted: Tensor) -> None:
        """Advance over the first `accepted` [B] tokens of the step, at least one."""
        assert self.fed is not None, "no tokens were fed"
        inputs, keys, written, decay = self.fed
        columns = accepted[:, None] + torch.arange(self.inputs.shape[-1], device=inputs.device)
        self.inputs = inputs.gather(2, columns[:, None].expand(-1, inputs.shape[1], -1))
        last = decay.gather(2, (accepted - 1)[:, None, None].expand(-1, decay.shape[1], 1))
        outside = torch.arange(decay.shape[-1], device=decay.device) >= accepted[:, None, None]
        weights = (last - decay).masked_fill(outside, -torch.inf).exp()
        self.memory = self.memory * last.exp()[..., None] + (keys * weights[..., None]).transpose(2, 3) @ written
        self.fed = None

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows with these indices, in this order."""
        self.inputs, self.memory = self.inputs.index_select(0, rows), self.memory.index_select(0, rows)

    def join(self, other: GatedDeltaState) -> None:
        """Append the rows of `other`."""
        self.inputs = torch.cat([self.inputs, other.inputs])
        self.memory = torch.cat([self.memory, other.memory])


def states_after(prefilled: Any) -> dict[int, GatedDeltaState]:
    """The state of each linear layer in the `transformers.Cache` of processed prompts, by the layer's index."""
    states = {}
    for index, layer in enumerate(prefilled.layers):
        if hasattr(layer, "recurrent_states"):
            states[index] = GatedDeltaState(layer.conv_states[0][..., 1:], layer.recurrent_states[0].float())
    return states


@contextmanager
def stepping(modules: Mapping[int, nn.Module], states: Mapping[int, GatedDeltaState]) -> Iterator[None]:
    """Let each linear attention read its state, and leave what was fed in it, for a while."""
    with ExitStack() as restore:
        for index, state in states.items():
            module: Any = modules[index]
            restore.callback(_restore_forward, module, module.__dict__.get("forward"))
            module.forward = _Step(module, state)
        yield


def _restore_forward(module: Any, replaced: Any) -> None:
    """Use the method of the class again, or what a library has put in its place on this module."""
    if replaced is None:
        del module.forward
    else:
        module.forward = replaced


class _Step:
    """The forward pass of one module in a step; other arguments than the hidden states are not needed."""

    def __init__(self, module: Any, state: GatedDeltaState):
        self.module, self.state = module, state

    def __call__(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """The output [B, W, D] for `hidden_states` [B, W, D]."""
        module, (batch, width, _) = self.module, hidden_states.shape
        inputs = torch.cat([self.state.inputs, module.in_proj_qkv(hidden_states).transpose(1, 2)], dim=-1)
        weight, bias = module.conv1d.weight, module.conv1d.bias
        mixed = functional.conv1d(inputs.to(weight.dtype), weight, bias, groups=inputs.shape[1])
        mixed = ACT2FN[module.activation](mixed).to(inputs.dtype).transpose(1, 2)
        parts = mixed.split([module.key_dim, module.key_dim, module.value_dim], dim=-1)
        sizes = (module.head_k_dim, module.head_k_dim, module.head_v_dim)
        query, key, value = (
            part.reshape(batch, width, -1, size).transpose(1, 2).float()
            for part, size in zip(parts, sizes, strict=True)
        )
        group = module.num_v_heads // module.num_k_heads
        query, key = (_normalised(x).repeat_interleave(group, dim=1) for x in (query, key))
        beta = module.in_proj_b(hidden_states).sigmoid().float().transpose(1, 2)
        rate = functional.softplus(module.in_proj_a(hidden_states).float() + module.dt_bias)
        decay = (-module.A_log.float().exp() * rate).transpose(1, 2).cumsum(-1)
        output, written = delta_rule(query * module.head_k_dim**-0.5, key, value, beta, decay, self.state.memory)
        self.state.fed = FedTokens(inputs, key, written, decay)
        output = output.transpose(1, 2).to(hidden_states.dtype).reshape(-1, module.head_v_dim)
        gate = module.in_proj_z(hidden_states).reshape(-1, module.head_v_dim)
        return module.out_proj(module.norm(output, gate).reshape(batch, width, -1))


def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, decay: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated delta rule over W tokens: their outputs [B, H, W, Dv] and what each writes [B, H, W, Dv], float32.

    Each token decays the memory, replaces a part `beta` of the value that the memory holds for its key, and reads the
    result with its query. query, key: [B, H, W, Dk]. value: [B, H, W, Dv]. beta: [B, H, W]. decay: [B, H, W], the
    logarithm of the decay, summed over the tokens so far. memory: [B, H, Dk, Dv], before the first token.
    """
    width = decay.shape[-1]
    later = torch.ones(width, width, dtype=torch.bool, device=decay.device).triu(1)
    between = (decay[..., :, None] - decay[..., None, :]).masked_fill(later, -torch.inf).exp()
    scaled = key * beta[..., None]
    held = scaled @ key.transpose(2, 3) * between
    change = value * beta[..., None] - (scaled * decay.exp()[..., None]) @ memory
    written = torch.linalg.solve_triangular(held, change, upper=False, unitriangular=True)
    output = (query * decay.exp()[..., None]) @ memory + (query @ key.transpose(2, 3) * between) @ written
    return output, written


def _normalised(vectors: Tensor) -> Tensor:
    """Vectors of length 1, with the epsilon of transformers."""
    return vectors * torch.rsqrt((vectors * vectors).sum(-1, keepdim=True) + 1e-6)
