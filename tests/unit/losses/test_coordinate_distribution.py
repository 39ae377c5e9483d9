"""Distributions over coordinate bins: golden values of the method."""

import torch

from coordexp.losses.coordinate_distribution import expectation, gaussian_targets, log_probabilities


def test_gaussian_targets_golden_values():
    bins, q = gaussian_targets(torch.tensor([500 / 999, 0.0, 1.0]), sigma=1.5, truncate=8)
    assert bins.shape == (3, 17)
    assert torch.allclose(q.sum(-1), torch.ones(3))
    assert int((q[0] > 0).sum()) == 17
    assert int((q[1] > 0).sum()) == 9 and int((q[2] > 0).sum()) == 9
    _, sharp = gaussian_targets(torch.tensor([500 / 999]), sigma=1e-3, truncate=8)
    assert sharp[0, 8] == 1


def test_derivative_of_the_expectation():
    z = torch.randn(1, 1000, dtype=torch.float64, requires_grad=True)
    temperature = 0.7
    e = expectation(log_probabilities(z, temperature).exp())
    (grad,) = torch.autograd.grad(e.sum(), z)
    p = (z / temperature).softmax(-1)
    phi = torch.arange(1000, dtype=torch.float64) / 999
    assert torch.allclose(grad, p * (phi - e[:, None]) / temperature)
