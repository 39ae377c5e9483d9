"""The offset module: outputs and gradients against a dense reference, generation, and distributed training."""

from __future__ import annotations

from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from coordexp.modeling import coord_offset as offsets
from coordexp.modeling import merge, vocab
from coordexp.runtime.errors import ModelError

START, HIDDEN, ROWS = 7, 5, 1012


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own_head", [True, False])
def test_outputs_equal_those_of_modified_tables(own_head, dtype):
    """The slow, obvious version: add the offsets to the rows, look up, multiply."""
    torch.manual_seed(0)
    module = offsets.CoordOffsetAdapter(HIDDEN, START, START + 999, own_head)
    for table in module.parameters():
        torch.nn.init.normal_(table)
    head_offset = module.head_offset if own_head else module.embed_offset
    embed, head = torch.randn(ROWS, HIDDEN).to(dtype), torch.randn(ROWS, HIDDEN).to(dtype)
    ids = torch.tensor([[0, START - 1, START, START + 1, START + 999, START + 1000, ROWS - 1]])
    hidden = torch.randn(2, 3, HIDDEN).to(dtype)

    full = embed.float().clone()
    full[START : START + 1000] += module.embed_offset
    assert torch.equal(module(embed[ids], ids, "embed"), full.to(dtype)[ids])

    logits = module(hidden @ head.T, hidden, "head")
    table = head.float().clone()
    table[START : START + 1000] += head_offset
    expected = hidden.float() @ table.T
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(logits.float(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    assert torch.equal(logits[..., :START], (hidden @ head.T)[..., :START])


def test_gradients_equal_those_of_the_modified_rows():
    torch.manual_seed(0)
    module = offsets.CoordOffsetAdapter(HIDDEN, START, START + 999, own_head=True)
    embed = torch.randn(ROWS, HIDDEN, requires_grad=True)
    ids = torch.tensor([[START + 3, 0, START + 3, START + 10]])
    weight = torch.randn(1, 4, HIDDEN)
    (module(embed[ids], ids, "embed") * weight).sum().backward()
    expected = torch.zeros(1000, HIDDEN)
    expected[3], expected[10] = weight[0, 0] + weight[0, 2], weight[0, 3]
    torch.testing.assert_close(module.embed_offset.grad, expected)
    torch.testing.assert_close(embed.grad[START : START + 1000], expected)
    hidden = torch.randn(3, HIDDEN)
    head = torch.nn.Linear(HIDDEN, ROWS, bias=False)
    (module(head(hidden), hidden, "head") ** 2).sum().backward()
    torch.testing.assert_close(module.head_offset.grad, head.weight.grad[START : START + 1000])


def test_tables_are_float32_by_default(tmp_path):
    base = helpers.expanded(tmp_path, tie=False, dtype="bfloat16")
    ids = vocab.coord_ids(base)
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        model = helpers.load(base)
        offsets.attach(model, ids.start, ids.end, dtype=dtype)
        tables = model.coord_offset_adapter
        assert tables.embed_offset.dtype == tables.head_offset.dtype == expected
        assert torch.equal(
            helpers.logits(model, helpers.batch(base)), helpers.logits(helpers.load(base), helpers.batch(base))
        )


def test_impossible_ids_are_errors(tmp_path):
    base = helpers.expanded(tmp_path, tie=True)
    ids, model = vocab.coord_ids(base), helpers.load(base)
    with pytest.raises(ModelError, match="outside the embedding table"):
        offsets.attach(model, 151670, 152669)
    with pytest.raises(ModelError, match="must span the coordinate tokens"):
        offsets.attach(model, ids.start, ids.start + 10)
    offsets.attach(model, ids.start, ids.end)
    offsets.attach(model, ids.start, ids.end)
    assert len(model.get_input_embeddings()._forward_hooks) == 1
    with pytest.raises(ModelError, match="other ids are already attached"):
        offsets.attach(model, ids.start - 1, ids.end - 1)


def test_initialisation_that_changes_the_base_is_refused(tmp_path):
    """Such an adapter could not be merged, because the modified base is not saved."""
    with pytest.raises(ModelError, match="does not change the base weights"):
        offsets.lora_config({"start": START, "end": START + 999}, init_lora_weights="pissa_niter_4")
    base = helpers.expanded(tmp_path, tie=True)
    helpers.adapted(base, offset=False).save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    with pytest.raises(ModelError, match="this initialisation also changed the base weights"):
        merge.merge(base, tmp_path / "adapter", tmp_path / "merged")


def test_generation_uses_the_offsets(tmp_path):
    """With a key-value cache, token by token, as in the merged model."""
    base = helpers.expanded(tmp_path, tie=True)
    model = helpers.adapted(base)
    model.save_pretrained(tmp_path / "adapter")
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    inputs = helpers.batch(base)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1}
    found = model.generate(**inputs, **options)
    assert torch.equal(found, helpers.load(tmp_path / "merged").generate(**inputs, **options))
    assert not torch.equal(found, helpers.load(base).generate(**inputs, **options))


TRAIN = """
import os, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {tests!r})
import modeling_helpers as helpers
from coordexp.modeling import vocab
torch.set_num_threads(1)
from pathlib import Path
base, out, world = Path(sys.argv[1]), sys.argv[2], int(os.environ.get("WORLD_SIZE", 1))
rank = int(os.environ.get("RANK", 0))
model = helpers.adapted(base, tie_head=False, dora=True, target_modules=".*language_model.*(q|down)_proj")
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={{"use_reentrant": False}})
model.enable_input_require_grads()
model.train()
wrapped = model
if world > 1:
    dist.init_process_group("gloo")
    wrapped = DistributedDataParallel(model)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
start = vocab.coord_ids(base).start
rows = torch.arange(4)[:, None] * 40 + torch.arange(12)[None] + start  # four samples with rows of their own
for step in range(3):
    mine = rows[rank::world]
    loss = wrapped(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
if rank == 0:
    model.save_pretrained(out)
"""


@pytest.mark.slow
def test_two_processes_give_the_same_training_as_one(tmp_path):
    """DDP over gloo, DoRA, gradient checkpointing: equal to one process with the full batch."""
    base = helpers.expanded(tmp_path, tie=True)
    script = tmp_path / "train.py"
    script.write_text(TRAIN.format(tests=str(Path(__file__).parents[1])))
    run = """
        import subprocess, sys
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", sys.argv[1]]
        sys.exit(subprocess.run([*command, *sys.argv[2:]]).returncode)
    """
    helpers.in_fresh_process(run, 1, script, base, tmp_path / "one", environ={"OMP_NUM_THREADS": "1"})
    helpers.in_fresh_process(run, 2, script, base, tmp_path / "two", environ={"OMP_NUM_THREADS": "1"})
    one, two = (helpers.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    start = helpers.adapted(base, tie_head=False, dora=True, target_modules=".*language_model.*(q|down)_proj")
    initial = start.base_model.model.coord_offset_adapter
    moved = (one["base_model.model.coord_offset_adapter.embed_offset"] != initial.embed_offset).any(1).nonzero()
    assert moved.flatten().tolist() == [
        40 * i + j for i in range(4) for j in range(11)
    ]  # the last token predicts nothing


def test_the_gradient_of_the_logits_is_not_copied():
    """Gradients equal those of autograd's in-place slice, whose backward pass copies all logits several times."""

    class Buffers(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() == 6 * ROWS:
                given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
                self.count += result.untyped_storage().data_ptr() not in given
            return result

        count = 0

    def gradients(add):
        torch.manual_seed(0)
        table, hidden = torch.randn(1000, HIDDEN, requires_grad=True), torch.randn(6, HIDDEN, requires_grad=True)
        head = torch.nn.Linear(HIDDEN, ROWS, bias=False)
        loss = add(head(hidden), hidden @ table.T).logsumexp(-1).sum()
        with Buffers() as buffers:
            loss.backward()
        return table.grad, hidden.grad, head.weight.grad, buffers.count

    def add_slice(output, delta):
        output[..., START : START + 1000] += delta
        return output

    *expected, copies = gradients(add_slice)
    *found, fewer = gradients(lambda output, delta: offsets._AddColumns.apply(output, delta, START))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert fewer < copies
