"""Loss term `smooth_l1`: the smooth L1 distance between predicted and matched boxes."""

from coordexp.losses.terms import loss_term


@loss_term("smooth_l1", level="box")
def smooth_l1(predicted, target, beta=0.01):
    """Boxes [P, 4] in [0, 1]; returns one value per pair, [P]."""
    error = (predicted - target).abs()
    return (0.5 * error**2 / beta).where(error < beta, error - beta / 2).mean(dim=-1)
