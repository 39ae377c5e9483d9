"""The loss of "any remaining object will do", `set_targets: marginal`, against explicit sums of probabilities."""

import msgspec
import pytest
import torch
from loss_cases import START, batch, only, soft_targets

from coordexp.losses.coordinate_distribution import gaussian_targets
from coordexp.losses.criterion import DetectionCriterion
from coordexp.losses.targets import SlotTargets, SoftTargets

TEXT_IDS = [3, 7]  # targets at the first text position
SLOT, BINS, COORDS = 8, [100, 700, 700], torch.tensor([100.2, 699.9, 700.3]) / 999  # two objects with the same bin


def marginal(balance=0.0, **weights):
    return msgspec.structs.replace(only(**weights), set_targets="marginal", balance=balance)


def any_of_three():
    slots = SlotTargets(torch.full((3,), SLOT), torch.tensor(BINS), COORDS, torch.full((3,), 1 / 3))
    return soft_targets()._replace(slots=slots)


def loss_and_gradient(options, soft, seed=0):
    logits, labels, targets = batch(seed)
    logits.requires_grad_()
    loss, _ = DetectionCriterion(options, START)(logits, labels, targets._replace(soft=soft))
    return loss.item(), torch.autograd.grad(loss, logits)[0]


def slow_loss_and_gradient(per_text, per_slot, seed=0):
    """Mean of `per_text(log_p, label, first)` over text and of `per_slot(log_p, slot, label)` over slots."""
    logits, labels, _ = batch(seed)
    logits.requires_grad_()
    log_p = torch.log_softmax(logits, -1)
    text, slots = [], []
    for row in range(2):
        for i in range(labels.shape[1] - 1):
            label = int(labels[row, i + 1])
            if label >= START:
                slots.append(per_slot(log_p[row, i], len(slots), label))
            elif label != -100:
                text.append(per_text(log_p[row, i], label, not text))
    loss = torch.stack(text).mean() + torch.stack(slots).mean()
    return loss.item(), torch.autograd.grad(loss, logits)[0]


def equal(fast, slow):
    assert fast[0] == pytest.approx(slow[0], rel=1e-5)
    assert torch.allclose(fast[1], slow[1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_loss_and_gradient_are_those_of_the_summed_probability(balance):
    """At temperature 1, `ce` and `coord_mass` together are the cross-entropy over the whole vocabulary."""

    def text(log_p, label, first):
        ids = TEXT_IDS if first else [label]
        return -(1 - balance) * log_p[ids].exp().sum().log() - balance * log_p[ids].mean()

    def slot(log_p, number, label):
        ids = [START + k for k in BINS] if number == SLOT else [label]
        return -(1 - balance) * log_p[sorted(set(ids))].exp().sum().log() - balance * log_p[ids].mean()

    equal(
        loss_and_gradient(marginal(balance, text=1, ce=1, coord_mass=1), any_of_three()),
        slow_loss_and_gradient(text, slot),
    )


def test_soft_cross_entropy_sums_the_likelihoods_of_the_targets():
    options = marginal(text=1, soft_ce=1)
    _, _, targets = batch()

    def slot(log_p, number, label):
        coordinates = log_p[START : START + 1000].log_softmax(-1)
        coords = COORDS if number == SLOT else targets.coords[number : number + 1]
        index, q = gaussian_targets(coords, options.sigma, options.truncate)
        likelihoods = (q * coordinates[index]).sum(-1).exp()
        shared = torch.tensor([1, 2, 2]) if number == SLOT else torch.ones(1)
        return -(likelihoods / shared).sum().log()

    def text(log_p, label, first):
        return -log_p[TEXT_IDS if first else [label]].exp().sum().log()

    equal(loss_and_gradient(options, any_of_three()), slow_loss_and_gradient(text, slot))


def test_with_balance_1_it_is_the_loss_of_remaining():
    weights = {"text": 1, "ce": 1, "soft_ce": 1, "w1": 1}
    remaining = msgspec.structs.replace(only(**weights), set_targets="remaining")
    equal(loss_and_gradient(marginal(1.0, **weights), any_of_three()), loss_and_gradient(remaining, any_of_three()))


def test_without_branches_it_is_the_ordinary_loss():
    weights = {"text": 1, "ce": 1, "soft_ce": 1, "w1": 1, "l1": 1}
    equal(loss_and_gradient(marginal(0.5, **weights), None), loss_and_gradient(only(**weights), None))


def test_permuting_the_remaining_objects_changes_nothing():
    options = marginal(0.4, text=1, ce=1, soft_ce=1, w1=1)
    soft, order = any_of_three(), torch.tensor([2, 0, 1])
    permuted = SoftTargets(
        soft.text_position, soft.text_id.flip(0), soft.text_weight, SlotTargets(*(f[order] for f in soft.slots))
    )
    equal(loss_and_gradient(options, permuted), loss_and_gradient(options, soft))


def test_w1_compares_with_the_object_that_the_model_means():
    """A distribution on one of two objects costs nothing, although it is far from the mean of both."""
    logits, labels, targets = batch()
    row = (labels.roll(-1, 1) >= START).reshape(-1).nonzero()[SLOT, 0]
    index, q = gaussian_targets(COORDS[:1], 1.0, 8)
    flat = logits.reshape(-1, logits.shape[-1])
    flat[row, START : START + 1000] = -60.0
    flat[row, START + index[0]] = q[0].double().clamp_min(1e-20).log()
    soft = any_of_three()
    w1 = {}
    for name in ("remaining", "marginal"):
        options = msgspec.structs.replace(only(w1=1), set_targets=name)
        for kind, given in (("with", soft), ("without", None)):
            _, report = DetectionCriterion(options, START)(logits, labels, targets._replace(soft=given))
            w1[name, kind] = report.means["w1"][0].item()
    own = (COORDS[0] - targets.coords[SLOT]).abs().item()  # without set targets, the slot's label is far away
    assert w1["marginal", "without"] - w1["marginal", "with"] == pytest.approx(own, abs=1e-3)
    assert w1["remaining", "with"] - w1["marginal", "with"] == pytest.approx(0.6 * 2 / 3, abs=0.01)
