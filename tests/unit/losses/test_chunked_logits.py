"""Chunked reading of the logits: same gradients as at once, in the dtype of the logits."""

import torch
from loss_cases import ALL, START, VOCAB, batch

from coordexp.losses.chunked_logits import gather_logits
from coordexp.losses.criterion import DetectionCriterion


def test_values_and_gradients_equal_indexing():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(9, VOCAB, generator=g, dtype=torch.float64)
    rows, positions, ids = torch.tensor([1, 2, 3, 6, 8]), torch.tensor([0, 0, 2]), torch.tensor([4, 9, 2])
    slots = torch.tensor([1, 3, 4])
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    gathered = gather_logits(ours, rows, (positions, ids), slots, START)
    expected = (plain[rows].logsumexp(-1), plain[rows[positions], ids], plain[rows[slots], START : START + 1000])
    weights = [torch.randn(value.shape, generator=g, dtype=torch.float64) for value in expected]
    for value, reference in zip(gathered, expected, strict=True):
        assert torch.allclose(value.double(), reference, rtol=1e-6)
    sum((value * weight).sum() for value, weight in zip(gathered, weights, strict=True)).backward()
    sum((value * weight).sum() for value, weight in zip(expected, weights, strict=True)).backward()
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-5, atol=1e-7)


def test_the_chunk_size_changes_nothing(monkeypatch):
    logits, labels, targets = batch(dtype=torch.float32)
    criterion = DetectionCriterion(ALL, START)
    at_once = logits.clone().requires_grad_()
    criterion(at_once, labels, targets)[0].backward()
    monkeypatch.setattr("coordexp.runtime.tuning.LOGITS_PER_CHUNK", 3 * VOCAB)
    chunked = logits.clone().requires_grad_()
    criterion(chunked, labels, targets)[0].backward()
    assert torch.equal(at_once.grad, chunked.grad)


def test_half_precision_logits_get_a_gradient_in_half_precision():
    logits = torch.randn(6, VOCAB).bfloat16().requires_grad_()
    positions, ids = torch.tensor([0, 2, 4]), torch.tensor([1, 2, 3])
    gathered = gather_logits(logits, torch.arange(6), (positions, ids), torch.tensor([1, 3, 5]), START)
    (gathered.lse.sum() - gathered.target.sum() + gathered.coord.sum()).backward()
    assert logits.grad.dtype == torch.bfloat16 and gathered.coord.shape == (3, 1000)
