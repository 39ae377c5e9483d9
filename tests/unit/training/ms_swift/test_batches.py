"""Batches: padding, packing and partial logits leave the loss unchanged; long samples are refused or skipped."""

from types import SimpleNamespace

import pytest
import torch
from template_cases import encoder_of

from coordexp.losses.criterion import DetectionCriterion
from coordexp.losses.options import LossOptions
from coordexp.recipe import load_recipe
from coordexp.records import read_records
from coordexp.runtime import io
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.training.collate import as_targets
from coordexp.training.ms_swift.metrics import Mean, Quantiles, Total

EVERY_TERM = LossOptions(
    weights={"soft_ce": 1, "w1": 1, "l1": 1, "giou": 1, "ciou": 1}, matching="hungarian", set_targets="remaining"
)


@pytest.fixture(scope="module")
def encoder(shapes_data, tiny_model):
    with encoder_of(tiny_model, train_jsonl=str(shapes_data / "train.coord.jsonl"), loss=EVERY_TERM) as pair:
        yield pair


def loss_and_gradient(encode, rows, *, padding_free=False, packs=None, keep=False):
    """Loss and gradient of one batch, through ms-swift's collator, post-encode hook and trainer's slicing."""
    from swift.trainers import Seq2SeqTrainer

    encode.padding_free, encode.packing = padding_free or packs is not None, packs is not None
    samples = [encode.encode(dict(row), return_length=True) for row in rows]
    batch = encode.data_collator([[samples[i] for i in pack] for pack in packs] if packs else samples)
    encode.padding_free = encode.packing = False
    if keep:
        trainer = SimpleNamespace(template=encode, args=SimpleNamespace(tuner_backend="peft"))
        Seq2SeqTrainer.prepare_logits_to_keep(trainer, batch)
    model = encode.model
    model.zero_grad()
    labels, targets = batch.pop("labels"), batch.pop("coord_targets")
    batch = {name: batch[name] for name in batch if not name.startswith(("cu_seq", "max_length"))}
    text_positions = batch.pop("text_position_ids")
    if len(labels) == 1:  # flash attention reads cu_seq_lens; on a CPU transformers masks by the positions of the text
        batch["position_ids"] = torch.cat([text_positions[None], batch["position_ids"]])
    outputs = model(**batch, use_cache=False)
    criterion = DetectionCriterion(EVERY_TERM, encode.coord_start)
    loss, report = criterion(outputs.logits, labels, as_targets(targets))
    loss.backward()
    assert targets["counts"].tolist() == [report.means[name][1] for name in ("text", "ce", "l1")]
    return loss.item(), model.lm_head.weight.grad.clone(), outputs.logits.shape


def test_padding_packing_and_partial_logits_do_not_change_the_loss(encoder):
    encode, rows = encoder
    rows = rows.select(range(4))
    loss, grad, shape = loss_and_gradient(encode, rows)
    for options in (
        {"keep": True},
        {"padding_free": True},
        {"padding_free": True, "keep": True},
        {"packs": [[2, 0], [3, 1]]},
    ):
        other, other_grad, other_shape = loss_and_gradient(encode, rows, **options)
        assert other == pytest.approx(loss, rel=2e-6), options
        assert torch.allclose(other_grad, grad, atol=1e-5 * grad.abs().max().item()), options
        assert other_shape != shape
    with pytest.raises(AssertionError):
        alone, _, _ = loss_and_gradient(encode, rows.select(range(2)))
        assert alone == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {packing: true}", r"training\.packing: only flash attention keeps packed samples separate"),
        ("template: {padding_free: true}\nmodel: {attn_impl: sdpa}", r"template\.padding_free: only flash attention"),
        ("template: {truncation_strategy: left}", "truncation_strategy: answers must not be truncated"),
        ("template: {truncation_strategy: split}", "choose one of raise, delete"),
        ("training: {use_liger_kernel: true}", "its fused loss computes no logits"),
        ("template: {sequence_parallel_size: 2}", "would split the tokens of a box"),
        ("template: {loss_scale: last_round}", "the loss does not read it"),
        ("training: {label_smoothing_factor: 0.1}", "the loss does not read it"),
    ],
)
def test_unsound_arguments_are_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "bad.yaml")


def test_packing_is_allowed_with_flash_attention_and_tokenises_in_advance(tmp_path, tiny_model):
    from coordexp.training.swift_arguments import swift_arguments

    (tmp_path / "good.yaml").write_text("model: {attn_impl: flash_attention_2}\ntraining: {packing: true}")
    recipe = load_recipe(tmp_path / "good.yaml", {"custom": {"train_jsonl": "a"}})
    assert swift_arguments(recipe, tiny_model, tmp_path, tmp_path)["lazy_tokenize"] is False


def test_packs_fit_their_planned_length_in_every_epoch(encoder):
    """Lengths are measured once, and every epoch draws its images in another order."""
    from swift.dataset import AddLengthPreprocessor, LazyLLMDataset, PackingDataset

    from coordexp.training.ms_swift import dataset
    from coordexp.training.ms_swift.checkpoint_callback import CheckpointCallback

    encode, rows = encoder
    model, encode.model = encode.model, None  # as ms-swift does
    rows = AddLengthPreprocessor(template=encode)(rows, num_proc=None, load_from_cache_file=False, strict=True)
    encode.model = model
    limit = max(map(sum, rows["lengths"])) * 3 // 2
    lazy = LazyLLMDataset(rows, encode.encode, strict=True, random_state=17)
    packed = PackingDataset(encode, lazy, packing_length=limit, strict=True)
    callback = CheckpointCallback(None, SimpleNamespace(template=encode))
    try:
        for epoch in (0, 1, 2):
            callback.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch), num_train_epochs=3), None)
            lengths = [sum(len(row["input_ids"]) for row in packed[i]) for i in range(len(packed))]
            assert lengths == packed.packed_length and max(lengths) <= limit
    finally:
        dataset.set_epoch(0)
        encode.packing = encode.padding_free = False


@pytest.fixture
def one_long(shapes_data, tmp_path):
    """A file of four records, of which the third has a very long description."""
    return with_long(shapes_data, tmp_path, [2])


def with_long(shapes_data, tmp_path, indices):
    """A file of four records with very long descriptions at these indices."""
    records = list(read_records(shapes_data / "train.coord.jsonl", "token"))[:4]
    for record in records:
        record.images = [str(shapes_data / record.images[0])]
    for index in indices:
        records[index].objects[0].desc = "word " * 300
    io.write_jsonl(tmp_path / "long.jsonl", records)
    return tmp_path / "long.jsonl"


def test_a_too_long_sample_is_an_error_with_its_line(one_long, tiny_model):
    with encoder_of(tiny_model, train_jsonl=str(one_long)) as (encode, rows):
        encode.max_length = 250
        encode.encode(dict(rows[1]))
        with pytest.raises(
            DataError, match=r"long\.jsonl:3: (.|\n)*max_length\(250\)(.|\n)*truncation_strategy: delete"
        ):
            encode.encode(dict(rows[2]))


def skipping(plain):
    """A template that skips long samples, for the model of `plain`."""
    from swift.template import get_template

    encode = get_template(plain.processor, template_type="coordexp_qwen3_vl_delete", max_length=250)
    encode.set_mode("train")
    encode.model = plain.model
    return encode


def test_consecutive_long_samples_are_each_counted_once(shapes_data, tmp_path, tiny_model):
    with encoder_of(tiny_model, train_jsonl=str(with_long(shapes_data, tmp_path, [0, 1, 2]))) as (plain, rows):
        encode = skipping(plain)
        assert [encode.encode(dict(row))["coord_targets"].skipped for row in rows] == [1, 1, 1, 0]


def test_a_too_long_sample_is_skipped_and_counted(one_long, tiny_model):
    with encoder_of(tiny_model, train_jsonl=str(one_long)) as (plain, rows):
        encode = skipping(plain)
        encoded = [encode.encode(dict(row)) for row in rows]
        assert encoded[2]["input_ids"] == encoded[3]["input_ids"] == plain.encode(dict(rows[3]))["input_ids"]
        assert [sample["coord_targets"].skipped for sample in encoded] == [0, 0, 1, 0]
        assert encode.data_collator(encoded)["coord_targets"]["logged"] == {"samples_skipped": 1, "objects_cropped": 0}
        encode.max_length = 10
        with pytest.raises(DataError, match="every sample is longer"):
            encode.encode(dict(rows[0]))


def test_logged_means_and_quantiles_are_over_all_values():
    mean, total, errors = Mean(), Total(), Quantiles()
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(n, generator=generator) for n in (3, 100, 1)]
    for part in parts:
        mean.update(part.sum(), len(part))
        errors.update(part)
        total.update(len(part))
    values = torch.cat(parts)
    assert mean.compute()["mean"] == pytest.approx(values.mean().item(), rel=1e-6)
    assert total.compute() == {"total": 104}
    assert errors.compute()["median"] == pytest.approx(values.quantile(0.5).item(), rel=1e-6)
    assert errors.compute()["p90"] == pytest.approx(values.quantile(0.9).item(), rel=1e-6)
    for metric in (mean, total, errors):
        metric.reset()
        assert not any(metric.compute().values())
