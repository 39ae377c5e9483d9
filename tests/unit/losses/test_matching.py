"""Matching of predicted to ground-truth boxes within an image."""

import pytest
import torch

from coordexp.losses.matching import match, pair_cost, sinkhorn
from coordexp.losses.terms import giou


def crowd(seed=0, n=7):
    """Two images of boxes with descriptions; predictions are noisy, shuffled ground truth."""
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(n, 4, generator=g)
    target[:, 2:] = target[:, :2] + target[:, 2:] * (1 - target[:, :2])
    images = torch.tensor([0] * 4 + [1] * (n - 4))
    classes = torch.tensor([0, 0, 1, 1] + [0] * (n - 4))
    order = torch.cat([torch.randperm(4, generator=g), 4 + torch.randperm(n - 4, generator=g)])
    return target[order] + 0.01 * torch.randn(n, 4, generator=g), target, images, classes, order


def test_hungarian_finds_the_ground_truth_within_each_image():
    predicted, target, images, _, order = crowd()
    pairs = match(predicted, target, images, torch.zeros(7, dtype=torch.long), "hungarian")
    assert torch.equal(pairs.target, order)


def test_a_high_class_cost_keeps_descriptions_together():
    predicted, target, images, classes, _ = crowd()
    pairs = match(predicted, target, images, classes, "hungarian", class_cost=100.0)
    assert torch.equal(classes[pairs.predicted], classes[pairs.target])


def test_without_matching_each_box_is_paired_with_its_own():
    predicted, target, images, classes, _ = crowd()
    pairs = match(predicted, target, images, classes, "none")
    assert torch.equal(pairs.predicted, pairs.target) and pairs.weight.tolist() == [1.0] * 7


def test_a_non_finite_box_is_matched_and_left_to_the_loss_to_report():
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [torch.nan, 0.1, 0.2, 0.2]])
    zeros = torch.zeros(2, dtype=torch.long)
    pairs = match(boxes, boxes.nan_to_num(), zeros, zeros, "hungarian")
    assert sorted(pairs.predicted.tolist()) == sorted(pairs.target.tolist()) == [0, 1]


@pytest.mark.parametrize("method", ["hungarian", "sinkhorn"])
def test_permuting_ground_truth_or_predictions_changes_no_matched_term(method):
    predicted, target, images, classes, _ = crowd()
    classes = torch.zeros_like(classes)

    def term(p, t):
        pairs = match(p, t, images, classes, method)
        return (pairs.weight * giou(p[pairs.predicted], t[pairs.target])).sum().item()

    shuffled = torch.tensor([3, 1, 0, 2, 6, 4, 5])
    assert term(predicted, target[shuffled]) == pytest.approx(term(predicted, target), rel=1e-4)
    assert term(predicted[shuffled], target) == pytest.approx(term(predicted, target), rel=1e-4)


def test_sinkhorn_is_doubly_stochastic_and_sharpens_to_the_assignment():
    predicted, target, *_ = crowd(n=8)
    zeros = torch.zeros(4, dtype=torch.long)
    cost = pair_cost(predicted[:4], target[:4], zeros, 1.0)
    soft = sinkhorn(cost, epsilon=0.5)
    assert torch.allclose(soft.sum(0), torch.ones(4), atol=1e-3) and torch.allclose(soft.sum(1), torch.ones(4))
    sharp = sinkhorn(cost, epsilon=0.005, iterations=300)
    hard = match(predicted[:4], target[:4], zeros, zeros, "hungarian")
    assert torch.equal(sharp.argmax(1), hard.target)


def test_no_gradient_flows_through_the_matching():
    predicted, target, images, classes, _ = crowd()
    leaf = predicted.clone().requires_grad_()
    assert not match(leaf, target, images, classes, "sinkhorn").weight.requires_grad
