"""A small batch of logits, labels and targets for tests of the loss, and options with every term switched on."""

import torch

from coordexp.losses.options import LossOptions
from coordexp.losses.targets import SlotTargets, SoftTargets, Targets

START = 20  # id of the first coordinate token
VOCAB = START + 1000 + 5
ALL = LossOptions(
    weights={"text": 1, "ce": 1, "soft_ce": 0.7, "w1": 0.3, "coord_mass": 2, "l1": 0.5, "giou": 0.4, "ciou": 0.2},
    temperature=0.8,
    sigma=1.3,
)


def batch(seed=0, rows=2, length=14, dtype=torch.float64):
    """Two answers: text, a box, text, and in the second answer another box."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, VOCAB, generator=g, dtype=dtype)
    labels = torch.randint(0, START, (rows, length), generator=g)
    labels[:, :3] = -100
    coords = []
    for row, starts in enumerate([(5,), (4, 9)]):
        for start in starts:
            box = torch.rand(4, generator=g)
            box[2:] = box[:2] + (1 - box[:2]) * box[2:]
            coords.append(box)
            labels[row, start : start + 4] = START + (box * 999).round().long()
    flat = torch.cat(coords)
    boxes = torch.arange(len(flat)).reshape(-1, 4)
    return logits, labels, Targets(flat, boxes, torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.long))


def soft_targets():
    """Two tokens at the first text position of row 0; two coordinates at the first slot of the last box of row 1."""
    slots = SlotTargets(
        torch.tensor([8, 8]),
        torch.tensor([100, 700]),
        torch.tensor([100.2, 699.9]) / 999,
        torch.tensor([0.25, 0.75]),
    )
    return SoftTargets(torch.tensor([0, 0]), torch.tensor([3, 7]), torch.tensor([0.5, 0.5]), slots)


def only(**weights):
    """Options with these terms alone."""
    return LossOptions(weights={"text": 0, "ce": 0, "coord_mass": 0} | weights)
