"""How experts are found in the tensors of a checkpoint."""

from coordexp.modeling.experts import in_memory, stored
from coordexp.modeling.families import FAMILIES

NAMES = FAMILIES["qwen3_5_moe"].experts
MODULE = "model.language_model.layers.3.mlp.experts"
SHAPES = {f"{MODULE}.gate_up_proj": (2, 12, 8), f"{MODULE}.down_proj": (2, 8, 6), "lm_head.weight": (9, 8)}
SPLIT = {"lm_head.weight": (9, 8)}
SPLIT |= {f"{MODULE}.{e}.{part}_proj.weight": (6, 8) for e in range(2) for part in ("gate", "up")}
SPLIT |= {f"{MODULE}.{e}.down_proj.weight": (8, 6) for e in range(2)}


def test_a_tensor_of_one_expert_is_part_of_a_stacked_one():
    assert stored(f"{MODULE}.1.up_proj.weight", NAMES) == (f"{MODULE}.gate_up_proj", 1, "up_proj")
    for name in (f"{MODULE}.gate_up_proj", f"{MODULE}.1.bias.weight", "a.mlp.shared_expert.up_proj.weight"):
        assert stored(name, NAMES) == (name, None, "")
    assert stored(f"{MODULE}.1.up_proj.weight", None).name == f"{MODULE}.1.up_proj.weight"


def test_every_form_has_the_same_shapes_in_memory():
    swapped = {name: (*s[:-2], s[-1], s[-2]) if len(s) == 3 else s for name, s in SHAPES.items()}
    for form in (SHAPES, swapped, SPLIT):
        assert in_memory(form, SHAPES, NAMES) == SHAPES


def test_incomplete_or_different_experts_keep_their_names():
    incomplete = {name: shape for name, shape in SPLIT.items() if ".1.up_proj" not in name}
    assert f"{MODULE}.0.up_proj.weight" in in_memory(incomplete, SHAPES, NAMES)
    other = {**SHAPES, f"{MODULE}.down_proj": (2, 8, 5)}
    assert in_memory(other, SHAPES, NAMES) == other
    both = {**SHAPES, **SPLIT}
    assert in_memory(both, SHAPES, NAMES) == both
