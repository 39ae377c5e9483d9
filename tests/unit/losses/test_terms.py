"""Loss terms against golden values, and the box terms against their formulas, gradients included."""

import math

import pytest
import torch
from loss_cases import only

from coordexp.losses.coordinate_distribution import gaussian_targets
from coordexp.losses.targets import SlotTargets, slot_targets
from coordexp.losses.terms import LOSS_TERMS, CoordinateSlots, ciou, coordinate_mass, giou, loss_term, wasserstein1
from coordexp.runtime.errors import ConfigError


def slots_of(z, targets: SlotTargets, sigma=1.0, truncate=8, lse=None):
    log_p = z.log_softmax(-1)
    log_mass = z.logsumexp(-1) - (z.logsumexp(-1) if lse is None else lse)
    return CoordinateSlots(log_p, log_p.exp(), log_mass, targets, gaussian_targets(targets.coords, sigma, truncate))


def reference_giou(predicted, target):
    """1 - GIoU by its definition, for boxes with sorted corners."""
    inter, union, hull = _areas(predicted, target)
    return 1 - inter / (union + 1e-7) + (hull - union) / (hull + 1e-7)


def reference_ciou(predicted, target):
    inter, union, _ = _areas(predicted, target)
    overlap = inter / (union + 1e-7)
    sides = torch.maximum(predicted[:, 2:], target[:, 2:]) - torch.minimum(predicted[:, :2], target[:, :2])
    centres = (predicted[:, :2] + predicted[:, 2:] - target[:, :2] - target[:, 2:]) / 2
    distance = (centres**2).sum(-1) / ((sides**2).sum(-1) + 1e-7)
    angles = [torch.atan2(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1] + 1e-7) for b in (predicted, target)]
    aspect = (4 / math.pi**2) * (angles[1] - angles[0]) ** 2
    with torch.no_grad():
        alpha = aspect / (1 - overlap + aspect + 1e-7)
    return 1 - overlap + distance + alpha * aspect


def _areas(a, b):
    def area(boxes):
        return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)

    inter = area(torch.cat([torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])], -1))
    hull = area(torch.cat([torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])], -1))
    return inter, area(a) + area(b) - inter, hull


def random_boxes(seed, n=2000):
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, 2, generator=g, dtype=torch.float64).sort(dim=1).values
    corners[::4, 1] = corners[::4, 0] + 1e-4 * corners[::4, 1]  # some are tiny
    return corners.reshape(n, 4)


@pytest.mark.parametrize(("term", "reference"), [(giou, reference_giou), (ciou, reference_ciou)])
def test_box_terms_equal_their_formulas_with_gradients(term, reference):
    target = random_boxes(1)
    near = (target + 0.02 * torch.randn(target.shape, generator=torch.Generator().manual_seed(2))).reshape(-1, 2, 2)
    for boxes in (random_boxes(0), near.sort(dim=1).values.reshape(-1, 4)):
        ours, expected = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
        values, reference_values = term(ours, target), reference(expected, target)
        assert torch.allclose(values, reference_values, rtol=0, atol=1e-6)
        values.sum().backward()
        reference_values.sum().backward()
        assert torch.allclose(ours.grad, expected.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("term", [giou, ciou])
def test_box_terms_golden_values(term):
    box = torch.tensor([[0.1, 0.2, 0.5, 0.6]])
    swapped_corners = torch.tensor([[0.5, 0.6, 0.1, 0.2]])
    assert term(box, box).item() == pytest.approx(0, abs=1e-5)
    assert term(swapped_corners, box).item() == pytest.approx(0, abs=1e-5)
    assert 1 < term(box, torch.tensor([[0.8, 0.8, 0.9, 0.9]])).item() <= 2


@pytest.mark.parametrize("term", [giou, ciou])
@pytest.mark.parametrize("corners", [[0.3, 0.3, 0.3, 0.3], [0.2, 0.3, 0.4, 0.3], [0.3, 0.2, 0.3, 0.4]])
def test_degenerate_boxes_have_finite_gradients(term, corners):
    degenerate = torch.tensor([corners], requires_grad=True)
    term(degenerate, torch.tensor([[0.1, 0.2, 0.5, 0.6]])).sum().backward()
    assert torch.isfinite(degenerate.grad).all()


def test_wasserstein_distance_of_two_deltas_is_their_distance():
    z = torch.full((1, 1000), -1e4)
    z[0, 100] = 0
    target = slot_targets(torch.tensor([350]), torch.tensor([350 / 999]), None)
    value = wasserstein1(slots_of(z, target, sigma=1e-3, truncate=2), only(w1=1))
    assert value.item() == pytest.approx(250 / 999, rel=1e-5)


def test_coord_mass_is_zero_exactly_when_all_mass_is_on_coordinate_ids():
    z = torch.randn(3, 1000)
    target = slot_targets(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]) / 999, None)
    assert coordinate_mass(slots_of(z, target), only()).tolist() == [0.0, 0.0, 0.0]
    assert (coordinate_mass(slots_of(z, target, lse=z.logsumexp(-1) + 0.1), only()) > 0).all()


def test_every_term_has_a_docstring_and_a_known_level():
    for name in LOSS_TERMS.names():
        term = LOSS_TERMS[name]
        assert term.function.__doc__ and term.level in ("text", "coordinate", "box", "rejected"), name


def test_a_name_is_registered_only_once():
    with pytest.raises(ConfigError, match="'giou' is already registered"):
        loss_term("giou", level="box")(lambda predicted, target: predicted)


@pytest.mark.parametrize("gap", [-3.0, 3.0, 7.5, 9.0])
def test_unlikelihood_lowers_the_logit_of_a_rejected_token_however_certain_it_is(gap):
    """The gradient of -log(1 - p) by the logit is p."""
    logits = torch.tensor([gap, 0.0, -1.0], requires_grad=True)
    LOSS_TERMS["unlikelihood"].function(logits.log_softmax(-1)[:1], only(unlikelihood=1)).sum().backward()
    assert logits.grad[0].item() == pytest.approx(logits.softmax(-1)[0].item(), rel=0.02)


def test_unlikelihood_is_finite_with_a_gradient_for_a_probability_of_one():
    log_p = torch.zeros(1, requires_grad=True)
    loss = LOSS_TERMS["unlikelihood"].function(log_p, only(unlikelihood=1)).sum()
    loss.backward()
    assert math.isfinite(loss.item()) and 0 < log_p.grad.item() < math.inf
