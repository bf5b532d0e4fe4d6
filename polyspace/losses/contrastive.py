"""Contrastive losses, gathered across ranks with gradient."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from polyspace.utils.distrib import all_gather_cat
from polyspace.utils.misc import full_precision, wide


def nt_xent_loss(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    temperature: float | Float[Tensor, ""] = 0.1,
    same: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross entropy of SimCLR (Chen et al. 2020, eq. 1), symmetric over both views.

    Row i of `a` and of `b` are views of one item; every other row of both, on all ranks, is a negative: 2n − 1
    candidates. Identical rows give ln(2n − 1) at any temperature. Items of equal numbers in `same` (say, clips with
    one caption) are no negatives of each other. fp32 inside, or wider if the input is.
    """
    if a.shape != b.shape:
        raise ValueError(f"the two views need one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (all_gather_cat(F.normalize(wide(x), dim=-1)) for x in (a, b))
    n = a.shape[0]
    z = torch.cat([a, b])
    target = torch.arange(2 * n, device=z.device).roll(n)
    with full_precision(z):
        logits = z @ z.T / temperature
        left_out = torch.eye(2 * n, dtype=torch.bool, device=z.device)
        if same is not None:
            number = all_gather_cat(same).repeat(2)
            alike = number[:, None] == number[None]
            left_out = left_out | (alike & (target[:, None] != torch.arange(2 * n, device=z.device)))
        logits = logits.masked_fill(left_out, float("-inf"))
        return F.cross_entropy(logits, target)


def info_nce_loss(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], temperature: float = 0.07) -> Float[Tensor, ""]:
    """InfoNCE across two modalities or spaces, both ways (CLIP's loss, arXiv 2103.00020): row i of `a` should find row
    i of `b` among all rows of `b` on all ranks, and the other way round.

    Unlike NT-Xent no row is compared with others of its own side: parallel inputs give ln n at any temperature.
    """
    if a.shape != b.shape:
        raise ValueError(f"the two sides need one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (all_gather_cat(F.normalize(wide(x), dim=-1)) for x in (a, b))
    target = torch.arange(len(a), device=a.device)
    with full_precision(a):
        logits = a @ b.T / temperature
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
