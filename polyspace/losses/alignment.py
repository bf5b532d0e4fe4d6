"""How far a translated feature is from the true one. Pure functions of matching rows; fp32 inside, or wider."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyspace.utils.misc import wide


def l2_loss(x: Float[Tensor, "*N D"], y: Float[Tensor, "*N D"]) -> Float[Tensor, ""]:
    """Mean over rows and dimensions of (x − y)²."""
    return F.mse_loss(wide(x), wide(y))


def smooth_l1_loss(x: Float[Tensor, "*N D"], y: Float[Tensor, "*N D"]) -> Float[Tensor, ""]:
    """Mean Huber distance with a unit knee; half of it beside half the cosine is UNIC's loss (arXiv 2408.05088)."""
    return F.smooth_l1_loss(wide(x), wide(y))


def cosine_loss(x: Float[Tensor, "*N D"], y: Float[Tensor, "*N D"]) -> Float[Tensor, ""]:
    """Mean over rows of 1 − cos(x, y): 0 for parallel rows, 2 for opposite ones."""
    return (1 - F.cosine_similarity(wide(x), wide(y), dim=-1)).mean()
