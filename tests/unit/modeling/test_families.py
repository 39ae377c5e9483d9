"""Model families: the look-up by config.json, and the facts of Qwen3-VL against transformers and ms-swift."""

import ast
from pathlib import Path

import modeling_helpers as helpers
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig

import coordexp
from coordexp.modeling import tiny
from coordexp.modeling.base_checks import check_base
from coordexp.modeling.experts import is_expert_weight
from coordexp.modeling.families import FAMILIES, family_named, family_of
from coordexp.modeling.families.qwen3_vl import Qwen3VL
from coordexp.modeling.safetensors_io import open_checkpoint
from coordexp.runtime import io
from coordexp.runtime.errors import ModelError


@pytest.fixture(scope="module", params=FAMILIES.names())
def base(request, tmp_path_factory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("family") / "base", 3, family=request.param, **helpers.SMALL)


def test_a_checkpoint_names_its_family(base):
    family = family_of(base)
    assert type(family_named(AutoConfig.from_pretrained(base).model_type)) is type(family)
    assert type(helpers.load(base)).__name__ == family.transformers[1]


def test_tensors_are_those_of_the_model(base):
    """However transformers saves the experts."""
    family, config = family_of(base), io.read_json(base / "config.json")
    check_base(open_checkpoint(base), family, config)
    found = {name: tuple(p.shape) for name, p in helpers.load(base).state_dict().items()}
    assert family.tensor_shapes(config) == found


def test_experts_are_found_in_the_model(base):
    family = family_of(base)
    shapes = family.tensor_shapes(io.read_json(base / "config.json"))
    stacked = [name for name, shape in shapes.items() if len(shape) == 3 and "experts" in name]
    assert [name for name in shapes if is_expert_weight(name, family.experts)] == stacked
    assert bool(stacked) == (family.experts is not None)


@pytest.mark.parametrize(("model_type", "hint"), [("qwen3_vll", "did you mean 'qwen3_vl'"), ("llama", "qwen3_vl_moe")])
def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path, model_type, hint):
    io.write_json(tmp_path / "config.json", {"model_type": model_type})
    with pytest.raises(ModelError, match=rf"config\.json: model_type: unknown model family(.|\n)*{hint}"):
        family_of(tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"not a checkpoint folder; expected 'config\.json'"):
        family_of(tmp_path)


def test_names_and_sizes_are_those_of_the_model(base):
    family, model = family_of(base), helpers.load(base)
    embeddings = family.embeddings(model.config.to_dict())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert parameters[embeddings.embedding] is model.get_input_embeddings().weight
    assert parameters[embeddings.head] is model.get_output_embeddings().weight
    assert embeddings.tied
    assert family.language_model(model) is model.model.language_model
    assert model.get_submodule(family.modules.vision_tower) is model.model.visual
    config = io.read_json(base / "config.json")
    assert (family.patch_size(config), family.tile_size(config)) == (16, 32)


def test_untying_reaches_every_section():
    family = Qwen3VL()
    config = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True, "hidden_size": 8}}
    assert family.is_tied(config) and family.is_tied({"text_config": {"tie_word_embeddings": True}})
    untied = family.untied(config)
    assert untied == {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False, "hidden_size": 8}}
    assert not family.is_tied(untied)


def test_positions_after_the_prompt_are_those_of_transformers(base):
    """Feeding one token at the family's position gives the logits of feeding the full sequence."""
    family, model = family_of(base), helpers.load(base)
    full = batch_of(base)
    shape = full["input_ids"].shape
    prompt = {name: value[:, :-1] if value.shape == shape else value for name, value in full.items()}
    with torch.no_grad():
        expected = model(**full).logits[:, -1]
        outputs = model.model(**prompt, use_cache=True)
        first = family.first_positions(model, prompt["attention_mask"])
        hidden = family.language_model(model)(
            inputs_embeds=model.get_input_embeddings()(full["input_ids"][:, -1:]),
            position_ids=family.position_ids(first[:, None]),
            past_key_values=outputs.past_key_values,
        ).last_hidden_state
    assert torch.allclose(model.get_output_embeddings()(hidden)[:, -1], expected, atol=1e-5)


def batch_of(base: Path) -> dict[str, torch.Tensor]:
    """A prompt with one image of 2x3 tiles, and one token of an answer."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    text = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>Detect {"
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
    image = tokenizer.token_to_id(family_of(base).tokens.image_pad)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image).int(),
        "pixel_values": torch.randn(24, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }


@pytest.mark.parametrize("name", FAMILIES.names())
def test_ms_swift_knows_the_names(name):
    from swift.model import MODEL_MAPPING
    from swift.template import TEMPLATE_MAPPING

    swift, modules = FAMILIES[name].swift, FAMILIES[name].modules
    arch = MODEL_MAPPING[swift.model_type].model_arch
    assert swift.template in TEMPLATE_MAPPING
    assert arch.vision_tower == [modules.vision_tower]
    assert set(arch.language_model) == {modules.language_model, modules.head}


def test_facts_of_a_family_are_stated_in_its_module_only():
    """Outside docstrings, no other module mentions the family's classes, modules, special tokens or attributes."""
    root = Path(coordexp.__file__).parent
    facts = ("embed_tokens", "lm_head", "model.visual", "<|image_pad|>", "<|video_pad|>", "qwen3_vl", "Qwen3VL")
    facts += ("rope_deltas", "vision_config", "spatial_merge_size")
    facts += ("qwen3_5", "Qwen3_5", "linear_attn", "gate_up_proj", "mlp.experts", "A_log")
    allowed = {"modeling/qwen_tokenizer.py"}
    found = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name in allowed or name.startswith("modeling/families/"):
            continue
        tree = ast.parse(file.read_text())
        docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        texts = [(n.lineno, n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings]
        texts += [(n.lineno, n.attr) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        texts += [(n.lineno, n.name) for n in ast.walk(tree) if isinstance(n, ast.alias)]
        found += [(name, line, fact) for line, text in texts for fact in facts if fact in str(text)]
    assert found == []
