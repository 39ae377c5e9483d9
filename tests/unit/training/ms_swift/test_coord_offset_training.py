"""The `coordexp` tuner and the `multimodal_coord_offset` optimizer inside ms-swift's own structures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import modeling_helpers as helpers
import pytest
import torch
from peft import LoraConfig, PeftModel

from coordexp.modeling import vocab
from coordexp.records import COORD_TOKEN
from coordexp.runtime.errors import ConfigError, ModelError
from coordexp.training.ms_swift import custom_section as settings
from coordexp.training.ms_swift import optimizer, tuner

swift_model = pytest.importorskip("swift.model")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return helpers.expanded(tmp_path_factory.mktemp("base"), tie=True)


@pytest.fixture
def custom(monkeypatch):
    def use(**coord_offset) -> None:
        monkeypatch.setenv(settings.VARIABLE, json.dumps({"coord_offset": coord_offset}))
        settings.custom_section.cache_clear()

    yield use
    settings.custom_section.cache_clear()


def swift_load(base):
    model, _ = swift_model.get_model_processor(str(base), model_type="qwen3_vl", torch_dtype=torch.float32)
    return model


def arguments(base, **changes) -> SimpleNamespace:
    values = {
        "model_dir": str(base),
        "tuner_type": "coordexp",
        "tuner_backend": "peft",
        "task_type": "causal_lm",
        "target_modules": ["all-linear"],
        "freeze_llm": False,
        "freeze_vit": False,
        "freeze_aligner": False,
        "modules_to_save": [],
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_bias": "none",
        "lora_dtype": None,
        "use_rslora": False,
        "use_dora": True,
        "use_swift_lora": False,
        "lorap_lr_ratio": None,
        "init_weights": True,
        "target_parameters": None,
        "use_liger_kernel": False,
        "resume_from_checkpoint": None,
    }
    return SimpleNamespace(**values | changes)


def training(**changes):
    from transformers import TrainingArguments

    args = TrainingArguments("unused", learning_rate=1e-3, weight_decay=0.1, report_to=[], use_cpu=True)
    args.vit_lr, args.aligner_lr = 1e-4, None
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def create(model, **changes):
    return optimizer.CoordOffsetOptimizer(training(**changes), SimpleNamespace(model=model)).create_optimizer()


@pytest.mark.parametrize("tie_head", [True, False])
def test_groups_partition_the_trainable_parameters(base, custom, tie_head, caplog):
    custom(enabled=True, embed_lr=4e-4, head_lr=2e-4, tie_head=tie_head)
    model = tuner.CoordOffsetTuner.prepare_model(arguments(base, lora_bias="all"), swift_load(base))
    optimizer.logger.addHandler(caplog.handler)
    made = create(model)
    optimizer.logger.removeHandler(caplog.handler)
    rates = {g["name"]: (g["lr"], g["weight_decay"]) for g in made.param_groups}
    assert rates == {
        "vit no decay": (1e-4, 0.0),
        "vit decay": (1e-4, 0.1),
        "aligner no decay": (1e-3, 0.0),
        "aligner decay": (1e-3, 0.1),
        "llm no decay": (1e-3, 0.0),
        "llm decay": (1e-3, 0.1),
        "embed_offset": (4e-4, 0.0),
    } | ({} if tie_head else {"head_offset": (2e-4, 0.0)})
    grouped = [id(p) for g in made.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(p): name for name, p in model.named_parameters()}
    undecayed = {names[id(p)] for g in made.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {name for name in names.values() if "lora_magnitude_vector" in name} <= undecayed
    assert "optimizer group embed_offset: 1 tensors, 32,000 parameters, lr 0.0004" in caplog.text


def test_groups_other_than_the_offsets_are_those_of_multimodal(base, custom):
    from swift.optimizers.multimodal import MultimodalOptimizerCallback

    custom(enabled=False)
    plain = tuner.CoordOffsetTuner.prepare_model(arguments(base, use_dora=False), swift_load(base))
    reference = MultimodalOptimizerCallback(training(), SimpleNamespace(model=plain)).create_optimizer()
    off = create(plain)
    assert [g["params"] for g in off.param_groups] == [g["params"] for g in reference.param_groups]
    assert [(g["lr"], g["weight_decay"]) for g in off.param_groups] == [
        (g["lr"], g["weight_decay"]) for g in reference.param_groups
    ]
    custom(enabled=True)
    model = tuner.CoordOffsetTuner.prepare_model(arguments(base, use_dora=False), swift_load(base))
    groups = [g for g in create(model).param_groups if g["name"] != "embed_offset"]
    shapes = [[p.shape for p in g["params"]] for g in reference.param_groups]
    assert [[p.shape for p in g["params"]] for g in groups] == shapes


def test_without_offsets_the_tuner_is_ms_swifts_lora(base, custom, tmp_path):
    from swift.pipelines.train.tuner import prepare_adapter

    custom(enabled=False)
    torch.manual_seed(0)
    model = tuner.CoordOffsetTuner.prepare_model(arguments(base), swift_load(base))
    torch.manual_seed(0)
    expected = swift_load(base)
    expected.requires_grad_(False)
    expected = prepare_adapter(arguments(base, tuner_type="lora"), expected)
    assert {n for n, _ in model.named_modules()} == {n for n, _ in expected.named_modules()}
    for (name, p), (other, q) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other and p.requires_grad == q.requires_grad and torch.equal(p, q), name
    assert not any("coord_offset" in name for name, _ in model.named_modules())
    model.save_pretrained(tmp_path / "a")
    expected.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/adapter_config.json").read_bytes() == (tmp_path / "b/adapter_config.json").read_bytes()


def test_no_offsets_or_stray_parameters_are_errors(base, custom):
    custom(enabled=True)
    plain = swift_load(base)
    with pytest.raises(ConfigError, match="the model has no offsets"):
        create(plain)
    model = tuner.CoordOffsetTuner.prepare_model(arguments(base), swift_load(base))
    model.base_model.model.stray = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"2 trainable parameters .* first is base_model\.model\.stray\.weight"):
        create(model)


def test_ids_in_the_recipe_must_be_those_of_the_tokenizer(base, custom):
    ids = vocab.coord_ids(base)
    custom(enabled=True, ids={"start": ids.start, "end": ids.end})
    assert tuner.CoordOffsetTuner.prepare_model(arguments(base), swift_load(base))
    custom(enabled=True, ids={"start": 151670, "end": 152669})
    with pytest.raises(ModelError, match="differ from those of the tokenizer"):
        tuner.CoordOffsetTuner.prepare_model(arguments(base), swift_load(base))


def test_fused_head_is_refused(base, custom):
    custom(enabled=True)
    with pytest.raises(ConfigError, match="use_liger_kernel: false"):
        tuner.CoordOffsetTuner.prepare_model(arguments(base, use_liger_kernel=True), swift_load(base))


def test_a_trained_embedding_and_offsets_exclude_each_other(base, custom):
    custom(enabled=True)
    with pytest.raises(ModelError, match="mutually exclusive"):
        tuner.CoordOffsetTuner.prepare_model(arguments(base, modules_to_save=["embed_tokens"]), swift_load(base))


@pytest.mark.parametrize("accumulate", [1, 2], ids=["plain", "accumulated"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_ten_steps_change_the_rows_that_occurred_and_no_others(base, custom, tmp_path, use_dora, accumulate):
    custom(enabled=True, embed_lr=1e-2, head_lr=1e-2, tie_head=False)
    model = tuner.CoordOffsetTuner.prepare_model(arguments(base, use_dora=use_dora), swift_load(base))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    inputs, ids = helpers.batch(base), vocab.coord_ids(base)
    zero = helpers.logits(model.eval(), inputs)
    assert torch.equal(zero, helpers.logits(helpers.load(base), inputs))
    made = create(model)
    model.train()
    for step in range(10 * accumulate):
        # only the input side: rows that occur; the head of every row gets a gradient from the softmax
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        if step % accumulate == accumulate - 1:
            made.step()
            made.zero_grad()
    seen = sorted({int(i) - ids.start for i in inputs["input_ids"][0] if ids.start <= i <= ids.end})
    adapter = model.base_model.model.coord_offset_adapter
    moved = adapter.embed_offset.abs().sum(1).nonzero().flatten().tolist()
    assert moved == seen
    assert (adapter.head_offset.abs().sum(1) > 0).all()
    tuner.CoordOffsetTuner.save_pretrained(model, str(tmp_path / "adapter"))
    again = tuner.CoordOffsetTuner.from_pretrained(swift_load(base), str(tmp_path / "adapter"), is_trainable=True)
    assert torch.equal(helpers.logits(again.eval(), inputs), helpers.logits(model.eval(), inputs))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trainable


def test_resuming_an_adapter_without_offsets_is_an_error(base, custom, tmp_path):
    custom(enabled=True)
    plain = helpers.adapted(base, offset=False)
    assert type(plain.peft_config["default"]) is LoraConfig
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match="no coordinate offsets"):
        tuner.CoordOffsetTuner.from_pretrained(swift_load(base), str(tmp_path / "plain"))
    assert isinstance(PeftModel.from_pretrained(helpers.load(base), tmp_path / "plain"), PeftModel)


def real_recipe(data: Path, **training):
    """DoRA with offsets on both sides, in float32."""
    from coordexp.recipe import load_recipe

    custom = {"train_jsonl": str(data), "coord_offset": {"tie_head": False}, "detection_eval": {"every": 0}}
    overrides = {"model": {"torch_dtype": "float32"}, "training": training | {"logging_steps": 1}, "custom": custom}
    overrides["data"] = {"dataloader_num_workers": 0}
    return load_recipe(Path(__file__).parents[4] / "config/train/sft_coord_offset.yaml", overrides)


@pytest.mark.slow
def test_ten_steps_of_a_real_run_change_the_rows_of_its_boxes_and_no_others(shapes_data, tiny_model, tmp_path):
    """In ms-swift's trainer, every image in every step; in the merged tables all other rows equal the base model's."""
    from coordexp.modeling import merge
    from coordexp.training.train import train

    (tmp_path / "images").symlink_to(shapes_data / "images")
    lines = (shapes_data / "train.coord.jsonl").read_text().splitlines()[:3]
    (tmp_path / "three.jsonl").write_text("\n".join(lines) + "\n")
    batch = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    recipe = real_recipe(tmp_path / "three.jsonl", max_steps=10, save_steps=10, **batch)
    assert train(recipe, tiny_model, tmp_path / "adapter", tmp_path / "train" / "log.jsonl")["step"] == 10
    seen = sorted({int(k) for line in lines for k in COORD_TOKEN.findall(line)})
    assert 4 < len(seen) < 100
    adapter = helpers.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    offset = {side: adapter[f"base_model.model.coord_offset_adapter.{side}_offset"] for side in ("embed", "head")}
    assert offset["embed"].abs().sum(1).nonzero().flatten().tolist() == seen
    assert (offset["head"].abs().sum(1) > 0).all()  # the softmax has every row

    merge.merge(tiny_model, tmp_path / "adapter", tmp_path / "merged")
    before, after = (helpers.load_file(f / "model.safetensors") for f in (tiny_model, tmp_path / "merged"))
    embed, start = "model.language_model.embed_tokens.weight", vocab.coord_ids(tiny_model).start
    for name, rows in ((embed, seen), ("lm_head.weight", range(1000))):
        changed = (after[name] != before[embed]).any(1).nonzero().flatten().tolist()
        assert changed == [start + k for k in rows], name


@pytest.mark.slow
def test_a_real_run_trains_resumes_and_merges(shapes_data, tiny_model, tmp_path):
    """DoRA with offsets in ms-swift: a run resumed from a checkpoint ends with the same weights."""
    from coordexp.modeling import merge
    from coordexp.training.train import train

    recipe = real_recipe(shapes_data / "train.coord.jsonl", max_steps=4, save_steps=2, gradient_accumulation_steps=2)

    def run() -> dict:
        train(recipe, tiny_model, tmp_path / "adapter", tmp_path / "train" / "log.jsonl")
        return helpers.load_file(tmp_path / "adapter" / "adapter_model.safetensors")

    tensors = run()
    (last,) = (tmp_path / "train" / "checkpoints").glob("*/checkpoint-4")
    assert last.with_name("checkpoint-2").is_dir()
    shutil.rmtree(last)
    resumed = run()
    assert resumed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    embed = tensors["base_model.model.coord_offset_adapter.embed_offset"]
    head = tensors["base_model.model.coord_offset_adapter.head_offset"]
    assert embed.dtype == head.dtype == torch.float32
    assert 0 < (embed != 0).any(1).sum() < 1000 and (head != 0).any()
    assert any("lora_magnitude_vector" in name for name in tensors)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["coord_offset_adapter"] and config["use_dora"] is True
    manifest = merge.merge(tiny_model, tmp_path / "adapter", tmp_path / "merged")
    assert manifest["untied"] is True and manifest["applied"]["dora"] > 10
    merged = helpers.load(tmp_path / "merged")
    adapted = PeftModel.from_pretrained(helpers.load(tiny_model), tmp_path / "adapter").eval()
    inputs = helpers.batch(tiny_model)
    expected = helpers.logits(adapted, inputs)
    assert (helpers.logits(merged, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()
