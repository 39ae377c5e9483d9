"""Merged checkpoints of every family against the model with its adapter, also with adapters on the experts."""

from __future__ import annotations

from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from safetensors.torch import load_file

from coordexp.modeling import merge as merging
from coordexp.modeling import tiny, vocab
from coordexp.modeling.families import DEFAULT_FAMILY, FAMILIES
from coordexp.runtime import io
from coordexp.runtime.errors import ModelError

OTHERS = [name for name in FAMILIES.names() if name != DEFAULT_FAMILY]
WITH_EXPERTS = [name for name in OTHERS if FAMILIES[name].experts]
TARGETS = f"{helpers.TARGETS}|{helpers.LINEAR_TARGETS}"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(family: str, tie: bool) -> Path:
        if (family, tie) not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family, tie] = helpers.expanded(folder, tie=tie, family=family, expert_mlp=24)
        return made[family, tie]

    return base


def assert_merges(base: Path, folder: Path, **options) -> dict:
    """The merged checkpoint has the logits of base and adapter, which differ from those of the base."""
    model = helpers.adapted(base, target_modules=TARGETS, **options)
    inputs = helpers.batch(base)
    expected = helpers.logits(model, inputs)
    model.save_pretrained(folder / "adapter")
    manifest = merging.merge(base, folder / "adapter", folder / "merged")
    found = helpers.logits(helpers.load(folder / "merged"), inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected - helpers.logits(helpers.load(base), inputs)).abs().max() > 0.05 * expected.abs().max()
    return manifest["applied"]


@pytest.mark.parametrize("offset", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["offsets", "no offsets"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", OTHERS)
def test_merged_logits_equal_those_with_the_adapter(bases, tmp_path, family, tie, dora, offset):
    applied = assert_merges(bases(family, tie), tmp_path, dora=dora, offset=offset)
    assert applied["dora" if dora else "lora"] > 4


def stack(tensors: dict[str, torch.Tensor], swap: bool) -> None:
    """Store the experts as one tensor per weight, as in memory or with its two last dimensions swapped."""
    modules = {name.partition(".experts.")[0] + ".experts." for name in tensors if ".experts." in name}
    for module in modules:
        if f"{module}0.up_proj.weight" in tensors:
            gate, up, down = (
                torch.stack([tensors.pop(f"{module}{expert}.{part}_proj.weight") for expert in range(4)])
                for part in ("gate", "up", "down")
            )
            tensors |= {f"{module}gate_up_proj": torch.cat([gate, up], 1), f"{module}down_proj": down}
        for name in (f"{module}gate_up_proj", f"{module}down_proj"):
            tensors[name] = tensors[name].transpose(1, 2).contiguous() if swap else tensors[name]


@pytest.mark.parametrize(
    ("family", "form"),
    [*((f, "as saved") for f in WITH_EXPERTS), ("qwen3_5_moe", "stacked"), ("qwen3_vl_moe", "swapped")],
)
def test_adapters_of_experts_are_merged_into_every_form_of_storage(tmp_path, family, form):
    base = helpers.expanded(tmp_path, tie=True, family=family, expert_mlp=24)
    if form != "as saved":
        (base / "SHA256SUMS").unlink()
        helpers.rewrite(base, "model.safetensors", lambda tensors: stack(tensors, form == "swapped"))
    applied = assert_merges(base, tmp_path, target_parameters=list(helpers.EXPERT_TARGETS), use_rslora=True)
    assert applied["experts"] == 2 * 2


@pytest.mark.parametrize(("family", "form"), [("qwen3_5_moe", "stacked"), ("qwen3_vl_moe", "swapped")])
def test_full_weights_may_store_the_experts_otherwise_than_the_base(tmp_path, family, form):
    """Published checkpoints store them in one form, and transformers saves trained ones in another."""
    base = helpers.expanded(tmp_path, tie=True, family=family, expert_mlp=24)
    trained = helpers.load(base)
    torch.nn.init.normal_(trained.model.language_model.layers[0].mlp.experts.down_proj)
    trained.save_pretrained(tmp_path / "trained")
    (base / "SHA256SUMS").unlink()
    helpers.rewrite(base, "model.safetensors", lambda tensors: stack(tensors, form == "swapped"))
    merging.merge(base, tmp_path / "trained", tmp_path / "merged")
    inputs = helpers.batch(base)
    found = helpers.logits(helpers.load(tmp_path / "merged"), inputs)
    assert torch.equal(found, helpers.logits(trained, inputs))
    other = helpers.expanded(tmp_path / "other", tie=True, family=family, expert_mlp=20)
    with pytest.raises(ModelError, match=r"differ from the base in name or shape; the first is .*experts"):
        merging.merge(other, tmp_path / "trained", tmp_path / "wrong")


def test_an_adapter_of_one_weight_of_the_experts_is_recognised_by_its_size(bases, tmp_path):
    applied = assert_merges(bases("qwen3_vl_moe", True), tmp_path, target_parameters=[helpers.EXPERT_TARGETS[1]])
    assert applied["experts"] == 2


def test_an_adapter_of_other_experts_is_refused(bases, tmp_path):
    model = helpers.adapted(bases("qwen3_vl_moe", True), target_parameters=list(helpers.EXPERT_TARGETS))
    model.save_pretrained(tmp_path / "adapter")
    other = helpers.expanded(tmp_path, tie=True, family="qwen3_vl_moe", expert_mlp=20)
    with pytest.raises(ModelError, match=r"mlp\.experts: the adapter of the experts does not fit a weight of the base"):
        merging.merge(other, tmp_path / "adapter", tmp_path / "merged")
    config = tmp_path / "adapter" / "adapter_config.json"
    io.write_json(config, io.read_json(config) | {"target_parameters": ["gate_up_proj"]})
    with pytest.raises(ModelError, match="target_parameters: the name of the module"):
        merging.merge(other, tmp_path / "adapter", tmp_path / "merged")


def test_tensors_that_transformers_does_not_load_are_kept(tmp_path):
    """Published Qwen3.5 checkpoints contain a head for several next tokens."""
    tiny.build(tmp_path / "base", 3, family="qwen3_5", **helpers.SMALL)
    kept = torch.arange(6.0).view(2, 3)
    helpers.rewrite(tmp_path / "base", "model.safetensors", lambda tensors: tensors.update({"mtp.fc.weight": kept}))
    vocab.expand(tmp_path / "base", tmp_path / "expanded")
    assert_merges(tmp_path / "expanded", tmp_path)
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")["mtp.fc.weight"], kept)
