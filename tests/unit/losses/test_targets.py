"""Supervised labels of a batch and their hard and soft targets."""

import torch
from loss_cases import START, soft_targets

from coordexp.losses.targets import slot_targets, supervised_labels, text_targets


def test_position_i_predicts_label_i_plus_one():
    labels = torch.tensor([[-100, 3, START + 7, -100], [5, -100, START, 4]])
    found = supervised_labels(labels, START)
    assert found.rows.tolist() == [0, 1, 5, 6]
    assert found.ids.tolist() == [3, START + 7, START, 4]
    assert found.slots.tolist() == [1, 2] and found.text.tolist() == [0, 3]


def test_text_targets_are_hard_labels_or_their_soft_targets():
    found = supervised_labels(torch.tensor([[-100, 3, START, 4, 2]]), START)
    positions, ids, weights = text_targets(found, None)
    assert (positions.tolist(), ids.tolist(), weights.tolist()) == ([0, 2, 3], [3, 4, 2], [1, 1, 1])
    positions, ids, weights = text_targets(found, soft_targets())
    assert (positions.tolist(), ids.tolist(), weights.tolist()) == ([0, 0, 2, 3], [3, 7, 4, 2], [0.5, 0.5, 1, 1])


def test_slot_targets_are_hard_labels_or_their_soft_targets():
    bins, coords = torch.arange(10), torch.arange(10) / 999
    hard = slot_targets(bins, coords, None)
    assert hard.slot.tolist() == hard.bins.tolist() == list(range(10)) and set(hard.weight.tolist()) == {1}
    soft = slot_targets(bins, coords, soft_targets())
    assert sorted(soft.slot.tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9]
    assert soft.bins[soft.slot == 8].tolist() == [100, 700]
    assert soft.weight[soft.slot == 8].tolist() == [0.25, 0.75]
