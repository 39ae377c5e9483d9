"""The criterion against slow formulas, finite differences, and its normalisation by global counts."""

import math

import msgspec
import pytest
import torch
from loss_cases import ALL, START, VOCAB, batch, only, soft_targets

from coordexp.losses.coordinate_distribution import expectation, gaussian_targets
from coordexp.losses.criterion import Counts, DetectionCriterion
from coordexp.losses.options import GeometryWarmup, LossOptions
from coordexp.losses.targets import Targets
from coordexp.losses.terms import LOSS_TERMS, ciou, giou, l1, loss_term


def loss_of(logits, labels, targets, options, *args):
    return DetectionCriterion(options, START)(logits, labels, targets, *args)


def slow_loss(logits, labels, targets, options):
    """Every term by its formula, one position at a time, in float64."""
    w = options.weights
    phi = torch.arange(1000, dtype=torch.float64) / 999
    text, per_slot, expected = [], [], []
    for row in range(labels.shape[0]):
        for i in range(labels.shape[1] - 1):
            label = int(labels[row, i + 1])
            if label == -100:
                continue
            z = logits[row, i].double()
            if not START <= label < START + 1000:
                text.append(-torch.log_softmax(z, -1)[label])
                continue
            c = targets.coords[len(per_slot)].double()
            p = torch.softmax(z[START : START + 1000] / options.temperature, -1)
            t = label - START
            nearest = math.floor(float(c) * 999 + 0.5)
            q = torch.zeros(1000, dtype=torch.float64)
            for k in range(max(0, nearest - options.truncate), min(999, nearest + options.truncate) + 1):
                q[k] = math.exp(-((k - 999 * float(c)) ** 2) / (2 * options.sigma**2))
            q /= q.sum()
            full = torch.softmax(z, -1)
            per_slot.append(
                w["ce"] * -p[t].log()
                + w["soft_ce"] * -(q * p.log()).sum()
                + w["w1"] * (p.cumsum(0) - q.cumsum(0)).abs().sum() / 999
                + w["coord_mass"] * -full[START : START + 1000].sum().log()
            )
            expected.append((phi * p).sum())
    e = torch.stack(expected)[targets.boxes]
    c = targets.coords.double()[targets.boxes]
    geometry = w["l1"] * l1(e, c) + w["giou"] * giou(e, c) + w["ciou"] * ciou(e, c)
    return w["text"] * torch.stack(text).mean() + torch.stack(per_slot).mean() + geometry.mean()


def test_loss_and_gradients_equal_the_slow_formulas():
    logits, labels, targets = batch()
    fast_in, slow_in = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    fast, _ = loss_of(fast_in, labels, targets, ALL)
    slow = slow_loss(slow_in, labels, targets, ALL)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5)
    fast.backward()
    slow.backward()
    assert torch.allclose(fast_in.grad, slow_in.grad, rtol=1e-4, atol=1e-7)


def test_gradient_equals_finite_differences():
    logits, labels, targets = batch()
    options = LossOptions(weights={**ALL.weights, "ciou": 0}, temperature=0.8, sigma=1.3)  # CIoU holds alpha constant
    leaf = logits.clone().requires_grad_()
    loss_of(leaf, labels, targets, options)[0].backward()
    g = torch.Generator().manual_seed(5)
    direction = torch.randn(logits.shape, generator=g, dtype=logits.dtype)
    step = 1e-2
    up, _ = loss_of(logits + step * direction, labels, targets, options)
    down, _ = loss_of(logits - step * direction, labels, targets, options)
    numeric = (up - down).item() / (2 * step)
    assert numeric == pytest.approx((leaf.grad * direction).sum().item(), rel=2e-3)


def test_gradient_accumulation_changes_neither_loss_nor_gradient():
    logits, labels, targets = batch()
    at_once = logits.clone().requires_grad_()
    loss, _ = loss_of(at_once, labels, targets, ALL)
    loss.backward()
    parts = logits.clone().requires_grad_()
    counts = Counts(int(((labels[:, 1:] != -100) & (labels[:, 1:] < START)).sum()), targets.coords.numel(), 3)
    cut = int((labels[0, 1:] >= START).sum())
    n = cut // 4
    first = Targets(targets.coords[:cut], targets.boxes[:n], targets.images[:n], targets.classes[:n])
    second = Targets(targets.coords[cut:], targets.boxes[n:] - cut, targets.images[n:], targets.classes[n:])
    total = 0.0
    for row, part in enumerate([first, second]):
        piece, _ = loss_of(parts[row : row + 1], labels[row : row + 1], part, ALL, counts)
        piece.backward()
        total += piece.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(parts.grad, at_once.grad, rtol=1e-5, atol=1e-8)


def test_at_temperature_one_ce_plus_coord_mass_is_the_full_cross_entropy():
    logits, labels, targets = batch()
    loss, _ = loss_of(logits, labels, targets, only(ce=1, coord_mass=1))
    shifted = labels[:, 1:].reshape(-1)
    coord = shifted >= START
    flat = logits[:, :-1].reshape(-1, VOCAB)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(flat[coord], shifted[coord]).item(), rel=1e-5)


def test_a_batch_without_objects_has_only_a_text_loss():
    logits, labels, _ = batch()
    labels = labels.clamp(max=START - 1)
    nothing = torch.zeros(0, dtype=torch.long)
    empty = Targets(torch.zeros(0), torch.zeros(0, 4, dtype=torch.long), nothing, nothing)
    loss, report = loss_of(logits.requires_grad_(), labels, empty, ALL)
    loss.backward()
    assert math.isfinite(loss.item()) and not report.bin_errors.numel()
    sizes = {name: count for name, (_, count) in report.means.items()}
    text = sizes.pop("text")
    assert text == int((labels[:, 1:] != -100).sum()) and not any(sizes.values()) and "coord_accuracy" in sizes


def test_targets_that_do_not_match_the_labels_are_refused():
    logits, labels, targets = batch()
    with pytest.raises(ValueError, match="coordinate labels"):
        loss_of(logits, labels, targets._replace(coords=targets.coords[:-4], boxes=targets.boxes[:-1]), ALL)


def test_only_terms_with_a_weight_are_computed_and_reported():
    logits, labels, targets = batch()
    _, report = loss_of(logits, labels, targets, only(soft_ce=1, giou=0.5))
    assert set(report.means) == {"soft_ce", "giou", "coord_accuracy", "coord_probability"}


def test_coord_probability_is_the_mass_on_coordinate_ids():
    logits, labels, targets = batch()
    _, report = loss_of(logits, labels, targets, ALL)
    rows = labels.roll(-1, 1) >= START
    mass = logits.softmax(-1)[rows][:, START : START + 1000].sum(-1)
    assert report.means["coord_probability"] == (pytest.approx(mass.sum().item(), rel=1e-5), 12)


def test_box_terms_warm_up():
    logits, labels, targets = batch()
    options = only(l1=2)
    full, _ = loss_of(logits, labels, targets, options)
    warming = msgspec.structs.replace(options, geometry_warmup=GeometryWarmup(start=0.2, end=0.6))
    values = [loss_of(logits, labels, targets, warming, None, progress)[0].item() for progress in (0.1, 0.4, 0.6)]
    assert values == pytest.approx([0, full.item() / 2, full.item()])


@pytest.mark.parametrize("level", ["text", "coordinate", "box"])
def test_a_registered_term_joins_the_loss(level, monkeypatch):
    monkeypatch.setattr(LOSS_TERMS, "_items", dict(LOSS_TERMS._items))
    constant = {
        "text": lambda text, options: text.lse.new_tensor(float(text.lse.numel())),
        "coordinate": lambda slots, options: slots.p.new_ones(slots.p.shape[0]),
        "box": lambda predicted, target: predicted.new_ones(predicted.shape[0]),
    }
    loss_term("one", level=level)(constant[level])
    logits, labels, targets = batch()
    loss, report = loss_of(logits, labels, targets, only(one=3))
    assert loss.item() == pytest.approx(3)
    assert report.means["one"] == ({"text": 10, "coordinate": 12, "box": 3}[level],) * 2


def test_soft_targets_give_the_mean_over_the_objects_that_may_come_next():
    logits, labels, targets = batch()
    options = LossOptions(weights={"text": 1, "ce": 1, "soft_ce": 0.5, "coord_mass": 0})
    loss, _ = loss_of(logits, labels, targets._replace(soft=soft_targets()), options)
    text, per_slot = [], []
    for row in range(2):
        for i in range(labels.shape[1] - 1):
            label = int(labels[row, i + 1])
            if label == -100:
                continue
            log_p = torch.log_softmax(logits[row, i].double(), -1)
            if label < START:
                text.append(-(log_p[3] + log_p[7]) / 2 if not text else -log_p[label])
                continue
            log_c = torch.log_softmax(logits[row, i, START : START + 1000].double(), -1)
            candidates = [(label - START, float(targets.coords[len(per_slot)]), 1.0)]
            if len(per_slot) == 8:
                candidates = [(100, 100.2 / 999, 0.25), (700, 699.9 / 999, 0.75)]
            value = 0.0
            for t, c, weight in candidates:
                index, q = gaussian_targets(torch.tensor([c]), options.sigma, options.truncate)
                value = value - weight * (log_c[t] + 0.5 * (q[0].double() * log_c[index[0]]).sum())
            per_slot.append(value)
    expected = torch.stack(text).mean() + torch.stack(per_slot).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_slot_with_several_targets_is_ground_truth_in_its_box():
    logits, labels, targets = batch()
    logits.requires_grad_()
    loss, report = loss_of(logits, labels, targets._replace(soft=soft_targets()), only(l1=1))
    (gradient,) = torch.autograd.grad(loss, logits)
    slot_rows = labels.roll(-1, 1) >= START
    expected = expectation(logits.detach()[slot_rows][:, START : START + 1000].softmax(-1))
    expected[8] = targets.coords[8]
    total = (expected - targets.coords)[targets.boxes].abs().mean(1).sum()
    assert report.means["l1"] == (pytest.approx(total.item(), rel=1e-5), 3)
    has_gradient = gradient[slot_rows].abs().sum(-1) > 0
    assert set(has_gradient.nonzero().flatten().tolist()) == set(targets.boxes.flatten().tolist()) - {8}


def test_matched_box_terms_ignore_the_order_of_the_ground_truth():
    logits, labels, targets = batch(seed=3)
    plain = only(l1=1, giou=1)
    matched = msgspec.structs.replace(plain, matching="hungarian")
    swapped = targets.coords.clone()
    swapped[4:8], swapped[8:12] = targets.coords[8:12], targets.coords[4:8]
    same, _ = loss_of(logits, labels, targets, matched)
    other, _ = loss_of(logits, labels, targets._replace(coords=swapped), matched)
    unmatched, _ = loss_of(logits, labels, targets._replace(coords=swapped), plain)
    assert other.item() == pytest.approx(same.item(), rel=1e-6)
    assert unmatched.item() != pytest.approx(same.item(), rel=1e-3)
