"""Bases that cannot be used are refused by name; an output layer of its own survives a config that says tied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from safetensors.torch import load_file, save_file

from coordexp.modeling import merge as merging
from coordexp.modeling import tiny, vocab
from coordexp.runtime.errors import ModelError

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
BIAS = "model.visual.merger.norm.bias"
LAYER = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[bool, Path]:
    """Small bases by whether their embeddings are tied."""
    folder = tmp_path_factory.mktemp("bases")
    return {tie: tiny.build(folder / str(tie), 3, tie=tie, vocab_size=300, **helpers.SMALL) for tie in (True, False)}


@pytest.fixture
def base(bases, tmp_path):
    """Copies one of the bases and changes its tensors and its config.json in place."""

    def change(tie, tensors=lambda tensors: None, config=lambda config: None) -> Path:
        folder = Path(shutil.copytree(bases[tie], tmp_path / "base"))
        weights = load_file(folder / "model.safetensors")
        tensors(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        content = json.loads((folder / "config.json").read_text())
        config(content)
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return change


def fill(name, row, value):
    return lambda tensors: tensors[name][row].fill_(value)


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def take(name, shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def rename(old, new):
    return lambda tensors: [tensors.update({k.replace(old, new): tensors.pop(k)}) for k in list(tensors) if old in k]


UNUSABLE = {
    "untied without output layer": (False, {"tensors": lambda t: t.pop(HEAD)}, "lm_head.weight"),
    "NaN in a known row": (True, {"tensors": fill(EMBED, 7, torch.nan)}, rf"{EMBED}: row 7 contains NaN"),
    "infinity in the output layer": (False, {"tensors": fill(HEAD, 300, torch.inf)}, rf"{HEAD}: row 300 contains NaN"),
    "NaN in another layer": (True, {"tensors": fill(LAYER, 5, torch.nan)}, rf"{LAYER}: row 5 contains NaN"),
    "infinity in float16": (
        True,
        {"tensors": lambda t: t.update({BIAS: torch.tensor([0.0] * 31 + [1e5]).half()})},
        rf"{BIAS}: row 31 contains NaN",
    ),
    "negative infinity in bfloat16": (
        False,
        {"tensors": lambda t: t.update({BIAS: torch.tensor([-torch.inf] * 32).bfloat16()})},
        rf"{BIAS}: row 0 contains NaN",
    ),
    "only zeros": (True, {"tensors": lambda t: t[EMBED].zero_()}, rf"{EMBED}: the table contains only zeros"),
    "FP8": (True, {"tensors": cast(LAYER, torch.float8_e4m3fn)}, rf"{LAYER}: weights of this type.*found 'F8_E4M3'"),
    "int8": (True, {"tensors": cast(LAYER, torch.int8)}, rf"{LAYER}: weights of this type"),
    "quantisation": (
        True,
        {"config": lambda c: c["text_config"].update(quantization_config={"quant_method": "fp8"})},
        r"config\.json: text_config\.quantization_config: quantised weights",
    ),
    "no rows": (True, {"tensors": take(EMBED, (0, 32))}, rf"{EMBED}: not a table of embeddings, or an empty one"),
    "no columns": (True, {"tensors": take(EMBED, (1400, 0))}, rf"{EMBED}: not a table of embeddings, or an empty one"),
    "another model_type": (True, {"config": lambda c: c.update(model_type="qwen3")}, "unknown model family"),
    "a missing tensor": (True, {"tensors": lambda t: t.pop(LAYER)}, rf"1 tensors that config.*missing.*{LAYER}"),
    "names of another family": (
        True,
        {"tensors": rename("model.visual.", "visual.")},
        r"tensors that config\.json requires are missing, the first is model\.visual",
    ),
    "an unknown tensor": (
        True,
        {"tensors": take("model.language_model.extra", (1,))},
        r"1 tensors do not belong to the model.*model\.language_model\.extra",
    ),
    "another shape": (True, {"tensors": take(LAYER, (3, 32))}, rf"{LAYER}: shape differs from the model"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_base_is_refused_by_name(base, tmp_path, kind):
    tie, changes, message = UNUSABLE[kind]
    with pytest.raises(ModelError, match=message):
        vocab.expand(base(tie, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tied(config):
    config.update(tie_word_embeddings=True)
    config["text_config"].update(tie_word_embeddings=True)


def test_an_output_layer_of_its_own_survives_a_config_that_says_tied(base, bases, tmp_path):
    """PEFT's merge leaves such a checkpoint; the logits must be those of its own output layer."""
    expected = vocab.expand(bases[False], tmp_path / "untied")
    assert vocab.expand(base(False, config=tied), tmp_path / "out") | {"base": None} == expected | {"base": None}
    inputs = helpers.batch(tmp_path / "out")
    logits = helpers.logits(helpers.load(tmp_path / "untied"), inputs)
    torch.testing.assert_close(helpers.logits(helpers.load(tmp_path / "out"), inputs), logits, atol=1e-5, rtol=0)


def test_a_redundant_copy_of_a_tied_table_stays_tied(base, tmp_path):
    folder = base(True, tensors=lambda tensors: tensors.update({HEAD: tensors[EMBED].clone()}))
    vocab.expand(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("trained", ["adapter", "full"])
def test_merge_keeps_the_output_layer_of_such_a_checkpoint(bases, tmp_path, trained):
    vocab.expand(bases[False], tmp_path / "base")
    inputs = helpers.batch(tmp_path / "base")
    if trained == "adapter":
        model = helpers.adapted(tmp_path / "base", offset=False)
    else:
        model = helpers.load(tmp_path / "base")
        model.lm_head.weight.data.mul_(2)
    expected = helpers.logits(model, inputs)
    model.save_pretrained(tmp_path / "trained")
    content = json.loads((tmp_path / "base" / "config.json").read_text())
    tied(content)
    (tmp_path / "base" / "config.json").write_text(json.dumps(content))
    (tmp_path / "base" / "SHA256SUMS").unlink()
    manifest = merging.merge(tmp_path / "base", tmp_path / "trained", tmp_path / "out")
    assert manifest["untied"] is True
    found = helpers.logits(helpers.load(tmp_path / "out"), inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
