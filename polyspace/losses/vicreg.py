"""VICReg: invariance of two views, variance and covariance of each (arXiv 2105.04906, section 4.1).

Variance and covariance are those of the global batch: sums go over all ranks with gradient, so that one rank and many
give the same value.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from polyspace.utils.distrib import all_reduce_sum
from polyspace.utils.misc import full_precision, wide

EPSILON = 1e-4


def batch_covariance(z: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """Unbiased covariance of the rows of all ranks, with gradient."""
    z = wide(z)
    count, total = all_reduce_sum(z.new_tensor(float(len(z)))), all_reduce_sum(z.sum(0))
    centred = z - total / count.clamp_min(1)
    with full_precision(z):
        return all_reduce_sum(centred.T @ centred) / (count - 1).clamp_min(1)


def variance_term(covariance: Float[Tensor, "D D"], target: float = 1.0) -> Float[Tensor, ""]:
    """mean_d relu(target − √(Var_d + 1e-4)): 0 once every dimension has a standard deviation of `target`."""
    return torch.relu(target - (covariance.diagonal() + EPSILON).sqrt()).mean()


def covariance_term(covariance: Float[Tensor, "D D"]) -> Float[Tensor, ""]:
    """Σ_{d≠e} Cov²_de / D: 0 where dimensions are uncorrelated."""
    d = len(covariance)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / d


def position_covariance(
    z: Float[Tensor, "B N D"], visible: Bool[Tensor, "B N"], least: int = 2
) -> Float[Tensor, "D D"]:
    """Covariance over (clip, cell) after the batch mean of each position is taken away.

    Without that, positions alone would give all the variance that the term asks for. Only positions visible in at
    least `least` clips (over all ranks) count.
    """
    z = wide(z)
    use = visible[..., None]
    count = all_reduce_sum(visible.sum(0).to(z.dtype))
    mean = all_reduce_sum(torch.where(use, z, 0).sum(0)) / count.clamp_min(1)[:, None]
    keep = visible & (count >= least)
    centred = torch.where(keep[..., None], z - mean, 0).flatten(0, 1)
    freedom = torch.where(count >= least, count - 1, 0).sum()
    with full_precision(z):
        return all_reduce_sum(centred.T @ centred) / freedom.clamp_min(1)


def vicreg_terms(x: Float[Tensor, "N D"], y: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
    """(invariance, variance, covariance) of two views: mean squared difference over rows and dimensions, and the sums
    of both views' terms."""
    x, y = wide(x), wide(y)
    cx, cy = batch_covariance(x), batch_covariance(y)
    count = all_reduce_sum(torch.ones((), dtype=x.dtype, device=x.device))
    invariance = all_reduce_sum(F.mse_loss(x, y)) / count
    return invariance, variance_term(cx) + variance_term(cy), covariance_term(cx) + covariance_term(cy)


def vicreg_loss(
    x: Float[Tensor, "N D"],
    y: Float[Tensor, "N D"],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Weighted sum of `vicreg_terms`, the paper's weights by default. The variance term is the sum over both views, as
    in the paper; some libraries take their mean instead, which halves it."""
    invariance, variance, covariance = vicreg_terms(x, y)
    return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
