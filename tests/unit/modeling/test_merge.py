"""Merged checkpoints against the model with its adapter, for every kind of base and adapter; errors of merging."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from coordexp import cli
from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings, read_inference_settings
from coordexp.modeling import checksums, vocab
from coordexp.modeling import merge as merging
from coordexp.modeling.checkpoint_files import weights_identity
from coordexp.runtime.errors import ModelError
from coordexp.runtime.io import write_json
from coordexp.runtime.output_guard import MARKER


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict:
    made = {}

    def base(tie: bool, sharded: bool, dtype: str) -> Path:
        key = (tie, sharded, dtype)
        if key not in made:
            made[key] = helpers.expanded(tmp_path_factory.mktemp("base"), tie=tie, sharded=sharded, dtype=dtype)
        return made[key]

    return base


KINDS = {
    "no offsets": {"offset": False},
    "offsets": {"offset": True},
    "own head": {"offset": True, "tie_head": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["single", "sharded"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_merged_logits_equal_those_with_the_adapter(bases, tmp_path, tie, sharded, dora, kind):
    base = bases(tie, sharded, "float32")
    model = helpers.adapted(base, dora=dora, **KINDS[kind])
    inputs = helpers.batch(base)
    expected = helpers.logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    manifest = merging.merge(base, tmp_path / "adapter", tmp_path / "merged")
    merged = helpers.load(tmp_path / "merged")
    found = helpers.logits(merged, inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected - helpers.logits(helpers.load(base), inputs)).abs().max() > 0.05 * expected.abs().max()
    own_head = tie and kind == "own head"
    assert manifest["untied"] is own_head
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == (tie and not own_head)
    layout = {f.name for f in (tmp_path / "merged").glob("model*")}
    assert layout == {f.name for f in base.glob("model*")}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["single", "sharded"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_bfloat16_logits_agree_within_rounding(bases, tmp_path, tie, sharded, dora, kind):
    """PEFT rounds W x and B A x apart, a merged model rounds W + B A once: neither is nearer to float32 by a class."""
    base = bases(tie, sharded, "bfloat16")
    model = helpers.adapted(base, dora=dora, **KINDS[kind])
    inputs = helpers.batch(base)
    expected = helpers.logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    merging.merge(base, tmp_path / "adapter", tmp_path / "merged")
    merged = helpers.load(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    found = helpers.logits(merged, inputs)
    assert (found - expected).abs().max() <= 2**-5 * expected.abs().max()
    in_float32 = PeftModel.from_pretrained(helpers.load(base).float(), tmp_path / "adapter").eval()
    exact = helpers.logits(in_float32, inputs)
    assert (found - exact).norm() <= 1.5 * (expected - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_bfloat16_weights_are_rounded_once(bases, tmp_path, tie, dora):
    """A merged weight is float32 arithmetic rounded once: at most half a unit in the last place from exact."""
    base = bases(tie, False, "bfloat16")
    model = helpers.adapted(base, dora=dora)
    model.save_pretrained(tmp_path / "adapter")
    merging.merge(base, tmp_path / "adapter", tmp_path / "merged")
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "merged"))
    assert all(t.dtype == torch.bfloat16 for t in after.values())
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    start = vocab.coord_ids(base).start
    embed = "model.language_model.embed_tokens.weight"
    offset = adapter["base_model.model.coord_offset_adapter.embed_offset"].float()
    rows = (before[embed][start : start + 1000].float() + offset).bfloat16()
    assert torch.equal(after[embed][start : start + 1000], rows)
    assert torch.equal(after[embed][:start], before[embed][:start])
    name = "model.language_model.layers.0.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    exact = before[f"{name}.weight"].double() + 2.0 * b @ a
    if dora:
        magnitude = adapter[f"base_model.model.{name}.lora_magnitude_vector"].double()
        exact *= (magnitude / exact.norm(dim=1))[:, None]
    error = (after[f"{name}.weight"].double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 * 1.001 + 1e-12).all()
    # and the embedding that a coordinate token gets is bit for bit the merged row
    hidden = model.get_input_embeddings()(torch.arange(start, start + 1000))
    assert torch.equal(hidden, after[embed][start : start + 1000])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_same_weights_as_peft_merge_and_unload(bases, tmp_path, dora):
    base = bases(False, False, "float32")
    targets = ["q_proj", "down_proj", "qkv", "embed_tokens", "lm_head"]
    options = {
        "target_modules": targets,
        "use_rslora": True,
        "alpha_pattern": {"q_proj": 3},
        "rank_pattern": {"qkv": 2},
    }
    model = helpers.adapted(base, dora=dora, offset=False, modules_to_save=["visual.merger", "norm1"], **options)
    model.save_pretrained(tmp_path / "adapter")
    merging.merge(base, tmp_path / "adapter", tmp_path / "merged")
    expected = model.merge_and_unload().state_dict()
    found = load_file(tmp_path / "merged" / "model.safetensors")
    base_weights = load_file(base / "model.safetensors")
    assert found.keys() == base_weights.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, base_weights[name])}
    for part in ("embed_tokens", "lm_head", "q_proj", "visual.merger", "norm1"):
        assert any(part in name for name in changed), part


def test_training_only_the_embedding_of_a_tied_base_unties_it(bases, tmp_path):
    base = bases(True, True, "float32")
    model = helpers.adapted(base, offset=False, modules_to_save=["embed_tokens"])
    inputs = helpers.batch(base)
    expected = helpers.logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    manifest = merging.merge(base, tmp_path / "adapter", tmp_path / "merged")
    found = helpers.logits(helpers.load(tmp_path / "merged"), inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert manifest["untied"] is True


def test_other_files_are_those_of_the_base_without_training_files(bases, tmp_path):
    base = bases(True, False, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "checkpoint-3")
    for leftover in ("optimizer.pt", "trainer_state.json", "args.json", "README.md"):
        (tmp_path / "checkpoint-3" / leftover).write_text("{}")
    manifest = merging.merge(base, tmp_path / "checkpoint-3", tmp_path / "merged")
    names = {f.name for f in base.iterdir()} | {merging.MANIFEST_NAME}
    assert {f.name for f in (tmp_path / "merged").iterdir()} == names
    for file in base.iterdir():
        if file.suffix != ".safetensors" and file.name not in (MARKER, checksums.FILE_NAME):
            assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "merged" / merging.MANIFEST_NAME).read_text()) == manifest
    assert manifest["applied"] == {"lora": 14, "dora": 0, "replaced": 0, "offset_tables": 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_parameter_checkpoint_is_completed_in_the_dtype_of_the_base(bases, tmp_path, dtype):
    base = bases(True, False, dtype)
    model = helpers.load(base).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "run" / "checkpoint-10")
    (tmp_path / "run" / "checkpoint-10" / "optimizer.pt").write_bytes(b"x")
    manifest = merging.merge(base, tmp_path / "run", tmp_path / "merged")
    assert manifest["trained"]["kind"] == "full"
    names = {f.name for f in base.iterdir()} | {merging.MANIFEST_NAME}
    assert {f.name for f in (tmp_path / "merged").iterdir()} == names
    merged = helpers.load(tmp_path / "merged")
    assert merged.dtype == getattr(torch, dtype)
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(merged.dtype)), name


def test_the_merged_checkpoint_carries_the_settings_of_its_training(bases, tmp_path):
    base = bases(True, False, "float32")
    settings = InferenceSettings(max_blocks=9, min_blocks=4, factor=32, resize="fill", temperature=1.5)
    helpers.adapted(base).save_pretrained(tmp_path / "run" / "checkpoint-3")
    write_json(tmp_path / "run" / FILE_NAME, settings)
    merging.merge(base, tmp_path / "run", tmp_path / "of checkpoint")
    shutil.copytree(tmp_path / "run" / "checkpoint-3", tmp_path / "adapter")
    merging.merge(base, tmp_path / "adapter", tmp_path / "without")
    write_json(tmp_path / "adapter" / FILE_NAME, settings)
    merging.merge(base, tmp_path / "adapter", tmp_path / "of result")
    found = {name: read_inference_settings(tmp_path / name) for name in ("of checkpoint", "of result", "without")}
    assert found == {"of checkpoint": settings, "of result": settings, "without": None}


def test_newest_and_best_checkpoint(bases, tmp_path):
    base = bases(True, False, "float32")
    model = helpers.adapted(base)
    for step in (9, 10, 100):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-100" / "adapter_model.safetensors").unlink()  # a save that never finished
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(
        '{"best_model_checkpoint": "/old/place/checkpoint-9"}'
    )
    assert merging.resolve_checkpoint(tmp_path).name == "checkpoint-10"
    assert merging.resolve_checkpoint(f"{tmp_path}/checkpoint-*").name == "checkpoint-10"
    assert merging.resolve_checkpoint(f"{tmp_path}/checkpoint-*", best=True).name == "checkpoint-9"
    os.utime(tmp_path / "checkpoint-9")  # newest by its time, and last by name
    both = [tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"]
    assert merging.resolve_checkpoint(tmp_path).name == merging.resolve_checkpoint(*both).name == "checkpoint-10"
    assert merging.resolve_checkpoint(*both, best=True).name == "checkpoint-9"
    with pytest.raises(ModelError, match="recorded no best checkpoint that still exists"):
        merging.resolve_checkpoint(tmp_path / "checkpoint-10", best=True)
    with pytest.raises(ModelError, match="no checkpoint to merge"):
        merging.resolve_checkpoint(tmp_path / "checkpoint-100")


def test_environment_variables_and_exit_codes(bases, tmp_path, capsys):
    base = bases(True, False, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "checkpoint-1")
    env = {"ADAPTERS": f"{tmp_path}/checkpoint-*", "OUTPUT_DIR": f"{tmp_path}/merged", "GPU_DEVICES": "0"}
    assert merging.merge_from_env(env) == 0
    assert merging.merge_from_env(env) == 2
    assert "ALLOW_OVERWRITE=1" in capsys.readouterr().err
    before = (tmp_path / "merged" / "config.json").stat().st_ino, (tmp_path / "merged").stat().st_ino
    assert merging.merge_from_env(env | {"ALLOW_OVERWRITE": "1"}) == 0
    assert (tmp_path / "merged").stat().st_ino != before[1]
    assert merging.merge_from_env({"ADAPTERS": "x"}) == 2
    assert merging.merge_from_env(env | {"ADAPTERS": f"{tmp_path}/nothing", "OUTPUT_DIR": f"{tmp_path}/o"}) == 1


def test_the_command_line_merges_the_best_checkpoint(bases, tmp_path, monkeypatch):
    base = bases(True, False, "float32")
    for step in (1, 2):
        helpers.adapted(base).save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"best_model_checkpoint": "checkpoint-1"}')
    monkeypatch.setenv("ADAPTERS", f"{tmp_path}/checkpoint-*")
    for flags, step in (([], 2), (["--best"], 1)):
        monkeypatch.setenv("OUTPUT_DIR", f"{tmp_path}/merged-{step}")
        assert cli.main(["merge", *flags]) == 0
        manifest = json.loads((tmp_path / f"merged-{step}" / "merge_manifest.json").read_text())
        assert manifest["trained"]["path"].endswith(f"checkpoint-{step}")


def test_second_merge_of_the_same_adapter_is_refused(bases, tmp_path):
    base = bases(True, False, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "one")
    helpers.adapted(base, seed=5).save_pretrained(tmp_path / "two")
    merging.merge(base, tmp_path / "one", tmp_path / "merged")
    with pytest.raises(ModelError, match="already been merged"):
        merging.merge(tmp_path / "merged", tmp_path / "one", tmp_path / "again")
    merging.merge(tmp_path / "merged", tmp_path / "two", tmp_path / "both")
    with pytest.raises(ModelError, match="already been merged"):
        merging.merge(tmp_path / "both", tmp_path / "one", tmp_path / "again")
    with pytest.raises(ModelError, match="also an input"):
        merging.merge(base, tmp_path / "one", base, allow_overwrite=True)


def test_an_adapter_that_does_not_fit_is_refused(bases, tmp_path):
    base, untied = bases(True, True, "float32"), bases(False, False, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="output layer of its own"):
        merging.merge(untied, tmp_path / "adapter", tmp_path / "out")

    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-10])
    with pytest.raises(ModelError, match="truncated"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="not a safetensors file"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")
    weights.write_bytes(original)

    def foreign(tensors: dict) -> None:
        tensors["base_model.model.model.decoder.fc1.lora_A.weight"] = torch.zeros(2, 2)
        tensors["base_model.model.model.decoder.fc1.lora_B.weight"] = torch.zeros(2, 2)

    helpers.rewrite(tmp_path / "adapter", weights.name, foreign)
    with pytest.raises(ModelError, match=r"fc1\.weight: the adapter changes a tensor that the base does not have"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")

    def odd(tensors: dict) -> None:
        tensors["base_model.model.model.prompt"] = torch.zeros(2)

    weights.write_bytes(original)
    helpers.rewrite(tmp_path / "adapter", weights.name, odd)
    with pytest.raises(ModelError, match=r"model\.prompt: the adapter changes a tensor that the base does not have"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")

    def narrow(tensors: dict) -> None:
        key = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
        tensors[key] = tensors[key][:, 1:].contiguous()

    weights.write_bytes(original)
    helpers.rewrite(tmp_path / "adapter", weights.name, narrow)
    with pytest.raises(ModelError, match="shape differs"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_of_the_same_shapes_is_refused(bases, tmp_path):
    """A published result records the weights that it was trained on."""
    base = bases(True, True, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "adapter")
    record = {"base": weights_identity(base), "recipe": {}}
    (tmp_path / "adapter" / merging.TRAIN_MANIFEST).write_text(json.dumps(record))
    other = Path(shutil.copytree(base, tmp_path / "other", ignore=shutil.ignore_patterns(checksums.FILE_NAME)))
    merging.merge(other, tmp_path / "adapter", tmp_path / "out")
    shard = sorted(other.glob("model-*.safetensors"))[0]
    helpers.rewrite(other, shard.name, lambda tensors: next(iter(tensors.values())).add_(1))
    with pytest.raises(ModelError, match=rf"this is not the base that training used; found \['{shard.name}'\]"):
        merging.merge(other, tmp_path / "adapter", tmp_path / "out", allow_overwrite=True)


def test_different_ids_or_tokenizer_are_refused(bases, tmp_path):
    base = bases(True, False, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(config.read_text())
    moved = content | {"coord_offset": content["coord_offset"] | {"start": 5, "end": 1004}}
    config.write_text(json.dumps(moved))
    with pytest.raises(ModelError, match="coordinate ids of the adapter differ"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")
    config.write_text(json.dumps(content))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (tmp_path / "adapter" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="the tokenizer differs"):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")


def test_a_damaged_base_is_refused(bases, tmp_path):
    base = bases(True, True, "float32")
    helpers.adapted(base).save_pretrained(tmp_path / "adapter")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        if file.name != checksums.FILE_NAME:
            (broken / file.name).write_bytes(file.read_bytes())
    shard = sorted(broken.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name}: weight file is missing"):
        merging.merge(broken, tmp_path / "adapter", tmp_path / "out")
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=f"{shard.name}: file is truncated"):
        merging.merge(broken, tmp_path / "adapter", tmp_path / "out")
    shard.write_bytes(content)
    assert merging.merge(broken, tmp_path / "adapter", tmp_path / "out")["untied"] is False


def test_peft_loads_the_adapter_only_after_the_import(bases, tmp_path):
    base = bases(True, False, "float32")
    model = helpers.adapted(base, dora=True)
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "coord_offset_adapter" in config["modules_to_save"]
    assert {f.name for f in (tmp_path / "adapter").iterdir()} <= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    again = PeftModel.from_pretrained(helpers.load(base), tmp_path / "adapter").eval()
    inputs = helpers.batch(base)
    assert torch.equal(helpers.logits(again, inputs), helpers.logits(model, inputs))
    with again.disable_adapter():
        assert torch.equal(helpers.logits(again, inputs), helpers.logits(helpers.load(base), inputs))
    code = """
        import sys
        from peft import PeftModel
        from transformers import AutoModelForImageTextToText
        {extra}
        model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
        model = PeftModel.from_pretrained(model, sys.argv[2])
        print(model.base_model.model.coord_offset_adapter.embed_offset.abs().sum().item())
    """
    failed = helpers.in_fresh_process(code.format(extra=""), base, tmp_path / "adapter", check=False)
    assert failed.returncode != 0
    assert "import coordexp.modeling.coord_offset" in failed.stderr
    done = helpers.in_fresh_process(
        code.format(extra="import coordexp.modeling.coord_offset"), base, tmp_path / "adapter"
    )
    table = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = table["base_model.model.coord_offset_adapter.embed_offset"].abs().sum().item()
    assert float(done.stdout) == pytest.approx(expected)
