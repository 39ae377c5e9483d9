"""The arithmetic of merging, block by block, against dense formulas on complete tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordexp.modeling import merge_plan
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.adapter import Adapter, Lora, Offsets
from coordexp.modeling.families import EmbeddingTensors
from coordexp.runtime.errors import ModelError

ROWS, HIDDEN, RANK, SCALE = 1100, 12, 3, 0.5
START, END = 60, 1059
EMBED, HEAD, LINEAR = "embed.weight", "head.weight", "layer.weight"


def checkpoint(folder: Path, dtype: torch.dtype, *, tied: bool = True) -> shards.Checkpoint:
    """A base with an embedding table, a linear layer and, unless tied, an output layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = {EMBED: (ROWS, HIDDEN), LINEAR: (50, HIDDEN)} | ({} if tied else {HEAD: (ROWS, HIDDEN)})
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return shards.open_checkpoint(folder)


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **parts) -> Adapter:
    """An adapter whose parts are given as functions of the specifications of `tensors`."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    file = shards.read_header(folder / "adapter_model.safetensors")
    built = {name: part(file.tensors) for name, part in parts.items()}
    return Adapter(folder, {}, file, **({"lora": {}, "replaced": {}, "offsets": None} | built))


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(base: shards.Checkpoint, trained: Adapter, folder: Path, *, tied: bool = True) -> dict[str, torch.Tensor]:
    """The merged tensors as written by the plan."""
    plan = merge_plan.plan_adapter(base, trained, EmbeddingTensors(EMBED, HEAD, tied))
    folder.mkdir()
    assert merge_plan.write(plan, folder).methods == {"model.safetensors": "rewritten"}
    written = load_file(folder / "model.safetensors")
    assert (HEAD in written) == (plan.untied or not tied)
    return written


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True, params=[7 * HIDDEN, merge_plan.BLOCK_ITEMS], ids=["7 rows per block", "one block"])
def block_items(request, monkeypatch) -> None:
    monkeypatch.setattr(merge_plan, "BLOCK_ITEMS", request.param)


def assert_rounded_once(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """`found` is the float64 `expected` rounded to `dtype`, up to the rounding of float32 arithmetic before."""
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps * expected.abs() / 2
    assert ((found.double() - expected).abs() <= step + 2e-6).all()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_linear_layer_is_the_dense_formula(tmp_path, dtype, dora):
    """W + s B A; for DoRA m (W + s B A) / |W + s B A|, norms per row (arXiv:2402.09353, equation 5)."""
    base = checkpoint(tmp_path / "base", dtype)
    tensors = {"a": random(RANK, HIDDEN, seed=1), "b": random(50, RANK, seed=2), "m": random(50, seed=3).abs() + 0.5}
    trained = adapter(
        tmp_path / "adapter",
        tensors,
        lora=lambda t: {LINEAR: Lora(t["a"], t["b"], SCALE, t["m"] if dora else None, embedding=False)},
    )
    found = merged(base, trained, tmp_path / "out")
    source = load_file(tmp_path / "base" / "model.safetensors")
    a, b, m = (tensors[name].double() for name in "abm")
    dense = source[LINEAR].double() + SCALE * b @ a
    if dora:
        dense = m[:, None] * dense / dense.norm(dim=1, keepdim=True)
    assert_rounded_once(found[LINEAR], dense, dtype)
    assert torch.equal(found[EMBED], source[EMBED])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_embedding_is_the_dense_formula(tmp_path, dtype, dora):
    """E + s (B A)^T with A [r, rows] and B [hidden, r]; the norms of DoRA are per column."""
    base = checkpoint(tmp_path / "base", dtype)
    a, b, m = random(RANK, ROWS, seed=1), random(HIDDEN, RANK, seed=2), random(HIDDEN, seed=3).abs() + 20
    trained = adapter(
        tmp_path / "adapter",
        {"a": a, "b": b, "m": m},
        lora=lambda t: {EMBED: Lora(t["a"], t["b"], SCALE, t["m"] if dora else None, embedding=True)},
    )
    found = merged(base, trained, tmp_path / "out")
    source = load_file(tmp_path / "base" / "model.safetensors")[EMBED]
    dense = source.double() + SCALE * (b.double() @ a.double()).T
    if dora:
        dense = m.double() * dense / dense.norm(dim=0)
    assert_rounded_once(found[EMBED], dense, dtype)
    assert torch.equal(found[HEAD], source)  # trained on one side only: the tied output layer keeps the base's table


@pytest.mark.parametrize("own_head", [False, True])
def test_offsets_change_the_coordinate_rows_only(tmp_path, dtype, own_head):
    base = checkpoint(tmp_path / "base", dtype)
    tensors = {"embed": random(1000, HIDDEN, seed=1), "head": random(1000, HIDDEN, seed=2)}
    trained = adapter(
        tmp_path / "adapter",
        tensors,
        offsets=lambda t: Offsets(START, END, t["embed"], t["head"] if own_head else None, tie_head=not own_head),
    )
    found = merged(base, trained, tmp_path / "out")
    source = load_file(tmp_path / "base" / "model.safetensors")[EMBED]
    for name, offset in ((EMBED, "embed"), (HEAD, "head")) if own_head else ((EMBED, "embed"),):
        expected = source.clone()
        expected[START : END + 1] = (source[START : END + 1].float() + tensors[offset]).to(dtype)
        assert torch.equal(found[name], expected)


def test_a_replaced_tensor_is_converted_to_the_dtype_of_the_base(tmp_path, dtype):
    base = checkpoint(tmp_path / "base", dtype)
    weight = random(50, HIDDEN, seed=1)
    trained = adapter(tmp_path / "adapter", {"w": weight}, replaced=lambda t: {LINEAR: t["w"]})
    assert torch.equal(merged(base, trained, tmp_path / "out")[LINEAR], weight.to(dtype))


def test_an_unchanged_file_is_linked(tmp_path, dtype):
    base = checkpoint(tmp_path / "base", dtype)
    plan = merge_plan.plan_adapter(base, adapter(tmp_path / "adapter", {}), EmbeddingTensors(EMBED, HEAD, True))
    (tmp_path / "out").mkdir()
    assert merge_plan.write(plan, tmp_path / "out").methods == {"model.safetensors": "link"}


def test_tied_offsets_do_not_fit_a_base_with_an_output_layer(tmp_path):
    base = checkpoint(tmp_path / "base", torch.float32, tied=False)
    tensors = {"embed": random(1000, HIDDEN, seed=1)}
    trained = adapter(
        tmp_path / "adapter", tensors, offsets=lambda t: Offsets(START, END, t["embed"], None, tie_head=True)
    )
    with pytest.raises(ModelError, match="output layer of its own"):
        merge_plan.plan_adapter(base, trained, EmbeddingTensors(EMBED, HEAD, False))


def test_offsets_and_training_of_the_full_table_exclude_each_other(tmp_path):
    base = checkpoint(tmp_path / "base", torch.float32)
    tensors = {"embed": random(1000, HIDDEN, seed=1), "w": random(ROWS, HIDDEN, seed=2)}
    trained = adapter(
        tmp_path / "adapter",
        tensors,
        replaced=lambda t: {EMBED: t["w"]},
        offsets=lambda t: Offsets(START, END, t["embed"], None, tie_head=True),
    )
    with pytest.raises(ModelError, match="also trains the full embedding table"):
        merge_plan.plan_adapter(base, trained, EmbeddingTensors(EMBED, HEAD, True))


def test_full_weights_take_the_dtypes_of_the_base(tmp_path, dtype):
    base = checkpoint(tmp_path / "base", dtype)
    trained = checkpoint(tmp_path / "trained", torch.float32)
    plan = merge_plan.plan_full(base, trained, EmbeddingTensors(EMBED, HEAD, True))
    (tmp_path / "out").mkdir()
    merge_plan.write(plan, tmp_path / "out")
    found, source = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "trained"))
    assert all(torch.equal(found[name], source[name].to(dtype)) for name in source)


def test_full_weights_with_other_shapes_are_refused(tmp_path):
    base = checkpoint(tmp_path / "base", torch.float32)
    (tmp_path / "trained").mkdir()
    save_file({EMBED: torch.zeros(ROWS, HIDDEN), LINEAR: torch.zeros(3, 3)}, tmp_path / "trained/model.safetensors")
    trained = shards.open_checkpoint(tmp_path / "trained")
    with pytest.raises(ModelError, match=r"1 tensors differ .* the first is layer\.weight"):
        merge_plan.plan_full(base, trained, EmbeddingTensors(EMBED, HEAD, True))
