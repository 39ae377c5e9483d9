"""The decoding step of linear attention against transformers' recurrent rule, one token at a time."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from coordexp.modeling import tiny
from coordexp.modeling.families.gated_delta_net import FedTokens, GatedDeltaState, delta_rule, stepping

BATCH, HEADS, WIDTH, KEY, VALUE, KERNEL, CHANNELS = 3, 2, 5, 4, 6, 4, 7


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "query": normal(BATCH, HEADS, WIDTH, KEY),
        "key": torch.nn.functional.normalize(normal(BATCH, HEADS, WIDTH, KEY), dim=-1),
        "value": normal(BATCH, HEADS, WIDTH, VALUE),
        "beta": normal(BATCH, HEADS, WIDTH).sigmoid(),
        "g": -normal(BATCH, HEADS, WIDTH).exp(),
        "memory": normal(BATCH, HEADS, KEY, VALUE),
        "inputs": normal(BATCH, CHANNELS, KERNEL - 1 + WIDTH),
    }


def reference(given: dict[str, torch.Tensor], row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [H, length, Dv] and the memory after the first `length` tokens of a row."""
    parts = {name: given[name][row : row + 1, :, :length].transpose(1, 2) for name in ("query", "key", "value")}
    parts |= {name: given[name][row : row + 1, :, :length].transpose(1, 2) for name in ("g", "beta")}
    start = given["memory"][row : row + 1]
    output, memory = torch_recurrent_gated_delta_rule(**parts, initial_state=start, output_final_state=True)
    return output[0].transpose(0, 1), memory[0]


def test_outputs_and_memories_are_those_of_single_tokens():
    given = tensors()
    decay = given["g"].cumsum(-1)
    scaled = given["query"] * KEY**-0.5
    output, written = delta_rule(scaled, given["key"], given["value"], given["beta"], decay, given["memory"])
    state = GatedDeltaState(given["inputs"][..., : KERNEL - 1], given["memory"])
    state.fed = FedTokens(given["inputs"], given["key"], written, decay)
    accepted = torch.tensor([1, 3, WIDTH])
    state.accept(accepted)
    for row, length in enumerate(accepted.tolist()):
        expected, memory = reference(given, row, length)
        assert torch.allclose(output[row, :, :length], expected, atol=1e-5)
        assert torch.allclose(state.memory[row], memory, atol=1e-5)
        assert torch.equal(state.inputs[row], given["inputs"][row, :, length : length + KERNEL - 1])


def test_a_strong_decay_stays_finite():
    """The decay of a token that is not accepted would overflow relative to an accepted one."""
    given = tensors()
    decay = (given["g"] * 1e4).cumsum(-1)
    output, written = delta_rule(*(given[n] for n in ("query", "key", "value", "beta")), decay, given["memory"])
    state = GatedDeltaState(given["inputs"][..., : KERNEL - 1], given["memory"])
    state.fed = FedTokens(given["inputs"], given["key"], written, decay)
    state.accept(torch.ones(BATCH, dtype=torch.long))
    assert output.isfinite().all() and state.memory.isfinite().all()


def test_the_states_of_a_tiny_model_decay_slowly(tmp_path):
    """Some heads remember a prompt of a hundred tokens, and inputs keep their scale in the convolution."""
    folder = tiny.build(tmp_path / "base", 3, family="qwen3_5", layers=2, vision_layers=1)
    weights = load_file(folder / "model.safetensors")
    layer = "model.language_model.layers.0.linear_attn"
    decay = torch.nn.functional.softplus(weights[f"{layer}.dt_bias"]) * weights[f"{layer}.A_log"].exp()
    assert 100 * decay[0] < 2 and (decay < 2).all()
    assert 0.4 < weights[f"{layer}.conv1d.weight"].std() < 0.6


def test_the_forward_pass_of_a_module_is_restored():
    """Also one that a library has replaced on the module itself, as accelerate does."""
    plain, hooked = torch.nn.Identity(), torch.nn.Identity()
    hooked.forward = own = lambda x: x + 1
    state = GatedDeltaState(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1, 1))
    with stepping({0: plain, 1: hooked}, {0: state, 1: state}):
        assert "forward" in plain.__dict__ and hooked.forward is not own
    assert "forward" not in plain.__dict__ and hooked.forward is own
