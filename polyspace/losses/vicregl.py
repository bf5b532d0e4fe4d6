"""VICRegL: variance, invariance and covariance of whole clips and of matched places.

Variance and covariance are those of the global batch: sums go over all ranks with gradient, so that one rank and many
give the same value. Sources: VICReg, arXiv 2105.04906, section 4.1; VICRegL, arXiv 2210.01571, section 3.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

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


def match_by_place(
    places_x: Float[Tensor, "B N 3"], places_y: Float[Tensor, "B M 3"], most: int
) -> tuple[Tensor, Tensor]:
    """For each clip the `most` closest pairs (index in x, index in y), every x with its nearest y."""
    return _closest(torch.cdist(places_x.float(), places_y.float()), most)


def match_by_feature(x: Float[Tensor, "B N D"], y: Float[Tensor, "B M D"], most: int) -> tuple[Tensor, Tensor]:
    """Like `match_by_place`, nearest in feature space."""
    return _closest(torch.cdist(x.detach().float(), y.detach().float()), most)


def _closest(distance: Float[Tensor, "B N M"], most: int) -> tuple[Tensor, Tensor]:
    nearest, partner = distance.min(-1)
    index = nearest.topk(min(most, nearest.shape[1]), largest=False).indices
    return index, partner.gather(1, index)


def _rows(x: Float[Tensor, "B N D"], index: Tensor) -> Float[Tensor, "K D"]:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])).flatten(0, 1)


class VICRegLLoss(nn.Module):
    """α·VICReg(clips) + (1 − α)·VICReg(matched places), places matched both by location and by nearest feature, from
    each view to the other. Defaults are the paper's: γ = 20 matches, α = 0.75, weights 25/25/1."""

    def __init__(
        self,
        alpha: float = 0.75,
        num_matches: int = 20,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies in 0..1, not {alpha}")
        self.alpha, self.num_matches = alpha, num_matches
        self.weights = (invariance_weight, variance_weight, covariance_weight)

    def vicreg(self, x: Float[Tensor, "N D"], y: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        return torch.stack([w * t for w, t in zip(self.weights, vicreg_terms(x, y), strict=True)]).sum()

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        y: Float[Tensor, "B M D"],
        places_x: Float[Tensor, "B N 3"],
        places_y: Float[Tensor, "B M 3"],
    ) -> Float[Tensor, ""]:
        """Maps of two views of the same clips with the places of their vectors, in common coordinates."""
        loss = self.alpha * self.vicreg(x.mean(1), y.mean(1))
        if self.alpha == 1:
            return loss
        for a, b, pa, pb in ((x, y, places_x, places_y), (y, x, places_y, places_x)):
            for ia, ib in (match_by_place(pa, pb, self.num_matches), match_by_feature(a, b, self.num_matches)):
                loss = loss + (1 - self.alpha) / 4 * self.vicreg(_rows(a, ia), _rows(b, ib))
        return loss
