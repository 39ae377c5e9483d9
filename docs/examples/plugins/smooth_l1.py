"""Loss term `smooth_l1`: the smooth L1 distance between predicted and matched boxes."""

from torch.nn.functional import smooth_l1_loss

from coordexp.losses.terms import loss_term


@loss_term("smooth_l1", level="box")
def smooth_l1(predicted, target):
    """Boxes [P, 4] in [0, 1]; returns one value per pair, [P]."""
    return smooth_l1_loss(predicted, target, beta=0.01, reduction="none").mean(dim=-1)
