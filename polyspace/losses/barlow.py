"""Barlow Twins: the cross-correlation of two views should be the identity (arXiv 2103.03230, eq. 1 and 2)."""

from jaxtyping import Float
from torch import Tensor

from polyspace.utils.distrib import all_reduce_sum
from polyspace.utils.misc import full_precision, wide


def barlow_twins_loss(
    x: Float[Tensor, "N D"], y: Float[Tensor, "N D"], off_diagonal_weight: float = 5e-3, epsilon: float = 1e-5
) -> Float[Tensor, ""]:
    """Σ_d (1 − C_dd)² + λ Σ_{d≠e} C_de², C the correlation matrix of both sides over the rows of all ranks.

    Standard deviations are the population's (batch norm's), so C_dd is 1 for equal views of any size; dimensions that
    never vary give 0 there. λ is the paper's.
    """
    x, y = wide(x), wide(y)
    count = all_reduce_sum(x.new_tensor(float(len(x)))).clamp_min(1)

    def standardised(z: Tensor) -> Tensor:
        centred = z - all_reduce_sum(z.sum(0)) / count
        return centred / (all_reduce_sum(centred.square().sum(0)) / count + epsilon).sqrt()

    with full_precision(x):
        c = all_reduce_sum(standardised(x).T @ standardised(y)) / count
    on = (1 - c.diagonal()).square().sum()
    off = c.square().sum() - c.diagonal().square().sum()
    return on + off_diagonal_weight * off
