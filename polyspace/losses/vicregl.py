"""VICRegL: VICReg of whole clips and of matched places (arXiv 2210.01571, section 3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.losses.vicreg import vicreg_loss
from polyspace.utils.misc import wide


def match_by_place(
    places_x: Float[Tensor, "B N 3"], places_y: Float[Tensor, "B M 3"], most: int
) -> tuple[Tensor, Tensor]:
    """For each clip the `most` closest pairs (index in x, index in y), every x with its nearest y."""
    return _closest(places_x, places_y, most)


def match_by_feature(x: Float[Tensor, "B N D"], y: Float[Tensor, "B M D"], most: int) -> tuple[Tensor, Tensor]:
    """Like `match_by_place`, nearest in feature space."""
    return _closest(x.detach(), y.detach(), most)


def _closest(x: Float[Tensor, "B N D"], y: Float[Tensor, "B M D"], most: int) -> tuple[Tensor, Tensor]:
    """Ties are the rule, as cells of one chunk are alike: they go to the first, not to the rounding of a product whose
    order of sums depends on how many clips there are."""
    nearest, partner = torch.cdist(wide(x), wide(y), compute_mode="donot_use_mm_for_euclid_dist").min(-1)
    index = nearest.argsort(dim=1, stable=True)[:, :most]
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

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        y: Float[Tensor, "B M D"],
        places_x: Float[Tensor, "B N 3"],
        places_y: Float[Tensor, "B M 3"],
    ) -> Float[Tensor, ""]:
        """Maps of two views of the same clips with the places of their vectors, in common coordinates."""
        loss = self.alpha * vicreg_loss(x.mean(1), y.mean(1), *self.weights)
        if self.alpha == 1:
            return loss
        for a, b, pa, pb in ((x, y, places_x, places_y), (y, x, places_y, places_x)):
            for ia, ib in (match_by_place(pa, pb, self.num_matches), match_by_feature(a, b, self.num_matches)):
                loss = loss + (1 - self.alpha) / 4 * vicreg_loss(_rows(a, ia), _rows(b, ib), *self.weights)
        return loss
