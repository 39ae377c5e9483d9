"""Training refuses to start on a recipe that does not mean what it says, and stops at a loss that is no number."""

from types import SimpleNamespace

import pytest
import torch

from coordexp.errors import ConfigError, DataError
from coordexp.loss.objective import Counts
from coordexp.loss.targets import Targets
from coordexp.recipe import CoordOffset, CoordTokens, Custom
from coordexp.swift.loss import CoordLoss
from coordexp.swift.trainer import check_start

GOOD = Counts(text=50, slots=8, boxes=2)
WEIGHTS = {"model.layers.0.q_proj.lora_A": 64}
OFFSETS = {**WEIGHTS, "base_model.model.coord_offset_adapter.embed": 96_000}


def test_a_sound_start_is_silent():
    check_start(GOOD, WEIGHTS, Custom())
    check_start(GOOD, OFFSETS, Custom(coord_offset=CoordOffset(enabled=True)))
    check_start(Counts(50, 0, 0), WEIGHTS, Custom(coord_tokens=CoordTokens(enabled=False)))


@pytest.mark.parametrize(
    ("counts", "trainable", "custom", "message"),
    [
        (Counts(0, 8, 2), WEIGHTS, Custom(), "no text is supervised"),
        (Counts(50, 0, 0), WEIGHTS, Custom(), "but 0 slots"),
        (GOOD, {}, Custom(), "no parameter is trainable"),
        (GOOD, WEIGHTS, Custom(coord_offset=CoordOffset(enabled=True)), r"trainable: \[\]"),
        (GOOD, OFFSETS, Custom(), "coord_offset.enabled is False"),
    ],
)
def test_a_start_that_is_not_what_the_recipe_says_is_refused(counts, trainable, custom, message):
    with pytest.raises(ConfigError, match=message):
        check_start(counts, trainable, custom)


def test_a_loss_that_is_no_number_names_the_records():
    loss = CoordLoss.__new__(CoordLoss)
    loss.weights, loss.coord_start = Custom().loss, 10
    loss.trainer = SimpleNamespace(state=SimpleNamespace(global_step=7, max_steps=9))
    nothing = torch.zeros(0, dtype=torch.long)
    targets = Targets(torch.zeros(0), torch.zeros(0, 4, dtype=torch.long), nothing, nothing)
    logits = torch.full((1, 3, 1010), float("nan"))
    outputs = SimpleNamespace(logits=logits, coord_targets=targets, places=["train.coord.jsonl:12"])
    with pytest.raises(DataError, match=r"nan at step 7(.|\n)*train\.coord\.jsonl:12"):
        loss(outputs, torch.tensor([[-100, 3, 4]]))
