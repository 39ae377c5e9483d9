"""The objective against slow, obvious formulas, finite differences and the golden values of the method."""

import math

import msgspec
import pytest
import torch

from coordexp.losses import box_terms as boxes
from coordexp.losses import coordinate_terms as slots
from coordexp.losses.chunked_logits import split_logits
from coordexp.losses.coordinate_terms import SlotTargets, hard_targets
from coordexp.losses.criterion import Counts, geometry_warmup, objective
from coordexp.losses.matching import match, pair_cost, sinkhorn
from coordexp.losses.options import GeometryWarmup, LossOptions
from coordexp.losses.targets import SoftTargets, Targets

START = 20
VOCAB = START + 1000 + 5


def batch(seed=0, rows=2, length=14, dtype=torch.float64):
    """Two answers: text, then a box, then text, then (second row) another box."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, VOCAB, generator=g, dtype=dtype)
    labels = torch.randint(0, START, (rows, length), generator=g)
    labels[:, :3] = -100
    coords = []
    for row, places in enumerate([(5,), (4, 9)]):
        for place in places:
            box = torch.rand(4, generator=g)
            box[2:] = box[:2] + (1 - box[:2]) * box[2:]
            coords.append(box)
            labels[row, place : place + 4] = START + (box * 999).round().long()
    flat = torch.cat(coords)
    boxes_of = torch.arange(len(flat)).reshape(-1, 4)
    return logits, labels, Targets(flat, boxes_of, torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.long))


ALL = LossOptions(
    text=1, ce=1, soft_ce=0.7, w1=0.3, coord_mass=2, l1=0.5, giou=0.4, ciou=0.2, temperature=0.8, sigma=1.3
)


def slow_objective(logits, labels, targets, w):
    """Every term by its formula, one position at a time, float64."""
    phi = torch.arange(1000, dtype=torch.float64) / 999
    text, per_slot, expected = [], [], []
    for row in range(labels.shape[0]):
        for i in range(labels.shape[1] - 1):
            wanted = int(labels[row, i + 1])
            if wanted == -100:
                continue
            z = logits[row, i].double()
            if not START <= wanted < START + 1000:
                text.append(-torch.log_softmax(z, -1)[wanted])
                continue
            c = targets.coords[len(per_slot)].double()
            p = torch.softmax(z[START : START + 1000] / w.temperature, -1)
            t = wanted - START
            nearest = math.floor(float(c) * 999 + 0.5)
            q = torch.zeros(1000, dtype=torch.float64)
            for k in range(max(0, nearest - w.truncate), min(999, nearest + w.truncate) + 1):
                q[k] = math.exp(-((k - 999 * float(c)) ** 2) / (2 * w.sigma**2))
            q /= q.sum()
            full = torch.softmax(z, -1)
            per_slot.append(
                w.ce * -p[t].log()
                + w.soft_ce * -(q * p.log()).sum()
                + w.w1 * (p.cumsum(0) - q.cumsum(0)).abs().sum() / 999
                + w.coord_mass * -full[START : START + 1000].sum().log()
            )
            expected.append((phi * p).sum())
    e = torch.stack(expected)[targets.boxes]
    c = targets.coords.double()[targets.boxes]
    geometry = w.l1 * boxes.l1(e, c) + w.giou * boxes.giou_loss(e, c) + w.ciou * boxes.ciou_loss(e, c)
    return w.text * torch.stack(text).mean() + torch.stack(per_slot).mean() + geometry.mean()


def test_objective_equals_the_slow_formulas_with_gradients():
    logits, labels, targets = batch()
    fast_in, slow_in = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    fast, _ = objective(fast_in, labels, targets, ALL, START)
    slow = slow_objective(slow_in, labels, targets, ALL)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5)
    fast.backward()
    slow.backward()
    assert torch.allclose(fast_in.grad, slow_in.grad, rtol=1e-4, atol=1e-7)


def test_gradient_against_finite_differences():
    logits, labels, targets = batch()
    weights = msgspec.structs.replace(ALL, ciou=0)  # its aspect weight is held constant by definition
    leaf = logits.clone().requires_grad_()
    objective(leaf, labels, targets, weights, START)[0].backward()
    g = torch.Generator().manual_seed(5)
    direction = torch.randn(logits.shape, generator=g, dtype=logits.dtype)
    step = 1e-2
    up, _ = objective(logits + step * direction, labels, targets, weights, START)
    down, _ = objective(logits - step * direction, labels, targets, weights, START)
    numeric = (up - down).item() / (2 * step)
    assert numeric == pytest.approx((leaf.grad * direction).sum().item(), rel=2e-3)


def test_accumulation_changes_nothing():
    logits, labels, targets = batch()
    whole = logits.clone().requires_grad_()
    loss, _ = objective(whole, labels, targets, ALL, START)
    loss.backward()
    parts = logits.clone().requires_grad_()
    counts = Counts(int(((labels[:, 1:] != -100) & (labels[:, 1:] < START)).sum()), targets.coords.numel(), 3)
    cut = int((labels[0, 1:] >= START).sum())
    n = cut // 4
    first = Targets(targets.coords[:cut], targets.boxes[:n], targets.images[:n], targets.classes[:n])
    second = Targets(targets.coords[cut:], targets.boxes[n:] - cut, targets.images[n:], targets.classes[n:])
    total = 0.0
    for row, part in enumerate([first, second]):
        piece, _ = objective(parts[row : row + 1], labels[row : row + 1], part, ALL, START, counts)
        piece.backward()
        total += piece.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(parts.grad, whole.grad, rtol=1e-5, atol=1e-8)


def test_at_temperature_one_ce_plus_gate_is_the_full_cross_entropy():
    logits, labels, targets = batch()
    loss, _ = objective(logits, labels, targets, LossOptions(text=0, ce=1, coord_mass=1), START)
    shifted = labels[:, 1:].reshape(-1)
    coord = shifted >= START
    flat = logits[:, :-1].reshape(-1, VOCAB)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(flat[coord], shifted[coord]).item(), rel=1e-5)


def test_split_logits_reads_in_chunks(monkeypatch):
    logits, labels, targets = batch(dtype=torch.float32)
    whole = logits.clone().requires_grad_()
    objective(whole, labels, targets, ALL, START)[0].backward()
    monkeypatch.setattr("coordexp.losses.chunked_logits.CHUNK", {"cpu": 3 * VOCAB})
    parts = logits.clone().requires_grad_()
    objective(parts, labels, targets, ALL, START)[0].backward()
    assert torch.allclose(whole.grad, parts.grad, rtol=1e-6, atol=1e-9)


def test_a_batch_without_objects_has_a_text_loss_alone():
    logits, labels, _ = batch()
    labels = labels.clamp(max=START - 1)
    nothing = torch.zeros(0, dtype=torch.long)
    empty = Targets(torch.zeros(0), torch.zeros(0, 4, dtype=torch.long), nothing, nothing)
    loss, measured = objective(logits.requires_grad_(), labels, empty, ALL, START)
    loss.backward()
    assert math.isfinite(loss.item()) and not measured.bin_errors.numel()
    sizes = {name: count for name, (_, count) in measured.means.items()}
    text = sizes.pop("text")
    assert text == int((labels[:, 1:] != -100).sum()) and not any(sizes.values()) and "coord_accuracy" in sizes


def test_targets_that_do_not_fit_the_labels_are_refused():
    logits, labels, targets = batch()
    with pytest.raises(ValueError, match="coordinate labels"):
        objective(logits, labels, targets._replace(coords=targets.coords[:-4], boxes=targets.boxes[:-1]), ALL, START)


def test_soft_targets_golden():
    index, q = slots.soft_targets(torch.tensor([500 / 999, 0.0, 1.0]), sigma=1.5, truncate=8)
    assert index.shape == (3, 17)
    assert torch.allclose(q.sum(-1), torch.ones(3))
    assert int((q[0] > 0).sum()) == 17
    assert int((q[1] > 0).sum()) == 9 and int((q[2] > 0).sum()) == 9
    _, sharp = slots.soft_targets(torch.tensor([500 / 999]), sigma=1e-3, truncate=8)
    assert sharp[0, 8] == 1


def test_wasserstein_of_two_deltas_is_their_distance():
    z = torch.full((1, 1000), -1e4)
    z[0, 100] = 0
    wanted = hard_targets(torch.tensor([350]), torch.tensor([350 / 999]))
    value = slots.wasserstein1(z.softmax(-1), wanted, sigma=1e-3, truncate=2)
    assert value.item() == pytest.approx(250 / 999, rel=1e-5)


def test_gate_is_zero_exactly_when_all_mass_is_on_coordinate_ids():
    z = torch.randn(3, 1000)
    assert slots.gate(z.logsumexp(-1), z).tolist() == [0.0, 0.0, 0.0]
    assert (slots.gate(z.logsumexp(-1) + 0.1, z) > 0).all()


def test_derivative_of_the_expectation():
    z = torch.randn(1, 1000, dtype=torch.float64, requires_grad=True)
    temperature = 0.7
    e = slots.expectation(slots.log_probabilities(z, temperature).exp())
    (grad,) = torch.autograd.grad(e.sum(), z)
    p = (z / temperature).softmax(-1)
    phi = torch.arange(1000, dtype=torch.float64) / 999
    assert torch.allclose(grad, p * (phi - e[:, None]) / temperature)


def test_box_losses_golden():
    box = torch.tensor([[0.1, 0.2, 0.5, 0.6]])
    far = torch.tensor([[0.8, 0.8, 0.9, 0.9]])
    crossed = torch.tensor([[0.5, 0.6, 0.1, 0.2]])
    assert boxes.giou_loss(box, box).item() == pytest.approx(0, abs=1e-5)
    assert 1 < boxes.giou_loss(box, far).item() <= 2
    assert boxes.giou_loss(crossed, box).item() == pytest.approx(0, abs=1e-5)
    assert boxes.ciou_loss(box, box).item() == pytest.approx(0, abs=1e-5)
    degenerate = torch.tensor([[0.3, 0.3, 0.3, 0.3]], requires_grad=True)
    boxes.giou_loss(degenerate, box).sum().backward()
    assert torch.isfinite(degenerate.grad).all()


def test_ramp():
    loss = LossOptions(geometry_warmup=GeometryWarmup(start=0.2, end=0.6))
    assert [geometry_warmup(loss, p) for p in (0, 0.2, 0.6, 1)] == [0, 0, 1, 1]
    assert geometry_warmup(loss, 0.4) == pytest.approx(0.5)
    assert geometry_warmup(LossOptions(), 0) == 1


def test_split_logits_in_half_precision_keeps_the_dtype_of_the_gradient():
    logits = torch.randn(6, VOCAB).bfloat16().requires_grad_()
    places, ids = torch.tensor([0, 2, 4]), torch.tensor([1, 2, 3])
    split = split_logits(logits, torch.arange(6), (places, ids), torch.tensor([1, 3, 5]), START)
    (split.lse.sum() - split.picked.sum() + split.coord.sum()).backward()
    assert logits.grad.dtype == torch.bfloat16 and split.coord.shape == (3, 1000)


def spread_of(labels, targets):
    """The first text position of row 0 may be two tokens; the first slot of row 1's second box either box's x1."""
    slots = SlotTargets(
        torch.tensor([8, 8]),
        torch.tensor([100, 700]),
        torch.tensor([100.2, 699.9]) / 999,
        torch.tensor([0.25, 0.75]),
    )
    return SoftTargets(torch.tensor([0, 0]), torch.tensor([3, 7]), torch.tensor([0.5, 0.5]), slots)


def test_spread_targets_are_the_mean_over_what_may_come_next():
    logits, labels, targets = batch()
    weights = LossOptions(text=1, ce=1, soft_ce=0.5, coord_mass=0)
    spread = targets._replace(spread=spread_of(labels, targets))
    loss, _ = objective(logits, labels, spread, weights, START)
    expected = 0.0
    text, slots_seen = 0, 0
    parts = {"text": [], "slot": []}
    for row in range(2):
        for i in range(labels.shape[1] - 1):
            wanted = int(labels[row, i + 1])
            if wanted == -100:
                continue
            log_p = torch.log_softmax(logits[row, i].double(), -1)
            if wanted < START:
                first = text == 0 and row == 0
                parts["text"].append(-(log_p[3] + log_p[7]) / 2 if first else -log_p[wanted])
                text += 1
                continue
            log_c = torch.log_softmax(logits[row, i, START : START + 1000].double(), -1)
            options = [(wanted - START, float(targets.coords[slots_seen]), 1.0)]
            if slots_seen == 8:
                options = [(100, 100.2 / 999, 0.25), (700, 699.9 / 999, 0.75)]
            value = 0.0
            for t, c, w in options:
                index, q = slots.soft_targets(torch.tensor([c]), weights.sigma, weights.truncate)
                value = value - w * (log_c[t] + 0.5 * (q[0].double() * log_c[index[0]]).sum())
            parts["slot"].append(value)
            slots_seen += 1
    expected = torch.stack(parts["text"]).mean() + torch.stack(parts["slot"]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_slot_that_may_open_several_objects_is_the_truth_in_its_box():
    logits, labels, targets = batch()
    logits.requires_grad_()
    only = LossOptions(text=0, ce=0, coord_mass=0, l1=1)
    spread = targets._replace(spread=spread_of(labels, targets))
    found = objective(logits, labels, spread, only, START)
    (gradient,) = torch.autograd.grad(found[0], logits)
    expected = slots.expectation(logits.detach()[labels.roll(-1, 1) >= START][:, START : START + 1000].softmax(-1))
    expected[8] = targets.coords[8]
    wanted = (expected - targets.coords)[targets.boxes].abs().mean(1).sum()
    assert found[1].means["l1"] == (pytest.approx(wanted.item(), rel=1e-5), 3)
    moved = gradient[labels.roll(-1, 1) >= START].abs().sum(-1) > 0
    in_boxes = set(targets.boxes.flatten().tolist()) - {8}
    assert set(moved.nonzero().flatten().tolist()) == in_boxes


def crowd(seed=0, n=7):
    """Two images of boxes with descriptions; predictions are noisy and shuffled truths."""
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(n, 4, generator=g)
    target[:, 2:] = target[:, :2] + target[:, 2:] * (1 - target[:, :2])
    images = torch.tensor([0] * 4 + [1] * (n - 4))
    classes = torch.tensor([0, 0, 1, 1] + [0] * (n - 4))
    order = torch.cat([torch.randperm(4, generator=g), 4 + torch.randperm(n - 4, generator=g)])
    return target[order] + 0.01 * torch.randn(n, 4, generator=g), target, images, classes, order


def test_hungarian_finds_the_truth_of_each_image():
    predicted, target, images, _, order = crowd()
    pairs = match(predicted, target, images, torch.zeros(7, dtype=torch.long), "hungarian")
    assert torch.equal(pairs.target, order)


def test_another_description_is_avoided():
    predicted, target, images, classes, _ = crowd()
    pairs = match(predicted, target, images, classes, "hungarian", class_cost=100.0)
    assert torch.equal(classes[pairs.predicted], classes[pairs.target])


def test_a_box_that_is_not_a_number_is_left_to_the_loss_to_report():
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [torch.nan, 0.1, 0.2, 0.2]])
    nothing = torch.zeros(2, dtype=torch.long)
    pairs = match(boxes, boxes.nan_to_num(), nothing, nothing, "hungarian")
    assert sorted(pairs.predicted.tolist()) == sorted(pairs.target.tolist()) == [0, 1]


@pytest.mark.parametrize("kind", ["hungarian", "sinkhorn"])
def test_permuting_truth_or_predictions_changes_no_matched_term(kind):
    predicted, target, images, classes, _ = crowd()
    classes = torch.zeros_like(classes)

    def term(p, t):
        pairs = match(p, t, images, classes, kind)
        return (pairs.weight * boxes.giou_loss(p[pairs.predicted], t[pairs.target])).sum().item()

    shuffled = torch.tensor([3, 1, 0, 2, 6, 4, 5])
    assert term(predicted, target[shuffled]) == pytest.approx(term(predicted, target), rel=1e-4)
    assert term(predicted[shuffled], target) == pytest.approx(term(predicted, target), rel=1e-4)


def test_sinkhorn_is_doubly_stochastic_and_sharpens_to_the_assignment():
    predicted, target, *_ = crowd(n=8)
    cost = pair_cost(predicted[:4], target[:4], torch.zeros(4, dtype=torch.long), 1.0)
    soft = sinkhorn(cost, epsilon=0.5)
    assert torch.allclose(soft.sum(0), torch.ones(4), atol=1e-3) and torch.allclose(soft.sum(1), torch.ones(4))
    sharp = sinkhorn(cost, epsilon=0.005, iterations=300)
    hard = match(
        predicted[:4], target[:4], torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), "hungarian"
    )
    assert torch.equal(sharp.argmax(1), hard.target)


def test_no_gradient_flows_through_the_matching():
    predicted, target, images, classes, _ = crowd()
    leaf = predicted.clone().requires_grad_()
    assert not match(leaf, target, images, classes, "sinkhorn").weight.requires_grad


def test_matched_geometry_ignores_the_order_of_the_truth():
    logits, labels, targets = batch(seed=3)
    weights = LossOptions(text=0, ce=0, coord_mass=0, l1=1, giou=1, matching="hungarian")
    swapped = targets.coords.clone()
    swapped[4:8], swapped[8:12] = targets.coords[8:12], targets.coords[4:8]
    same, _ = objective(logits, labels, targets, weights, START)
    other, _ = objective(logits, labels, targets._replace(coords=swapped), weights, START)
    plain = msgspec.structs.replace(weights, matching="none")
    unmatched, _ = objective(logits, labels, targets._replace(coords=swapped), plain, START)
    assert other.item() == pytest.approx(same.item(), rel=1e-6)
    assert unmatched.item() != pytest.approx(same.item(), rel=1e-3)
