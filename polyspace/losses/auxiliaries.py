"""Auxiliary terms that steer the tokenizer: how many chunks, how sure, how evenly used. fp32 inside (wider if
the input is), scalars out. Cells that are not valid may hold anything, NaN too, and get no gradient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyspace.losses.energy import global_mean
from polyspace.utils.distrib import all_reduce_sum
from polyspace.utils.misc import wide


def ratio_loss(
    boundary: Bool[Tensor, "*N"], prob: Float[Tensor, "*N"], valid: Bool[Tensor, "*N"], ratio: float
) -> Float[Tensor, ""]:
    """Steers the share of boundaries to 1/ratio: R/(R−1)·[(R−1)·F·G + (1−F)(1−G)], F = share of boundaries and
    G = mean probability over the valid cells of all ranks. It is 1 where F = G = 1/R, and its gradient in G,
    proportional to R·F − 1, changes sign there. Source: H-Net, arXiv 2507.07955, section 2.2.2.
    """
    if ratio <= 1:
        raise ValueError(f"ratio must be above 1 (cells a chunk), not {ratio}")
    p = torch.where(valid, wide(prob), 0)
    use = valid.to(p.dtype)
    sums = all_reduce_sum(torch.stack([(boundary * use).sum(), p.sum(), use.sum()]))
    share, mean = sums[0] / sums[2].clamp_min(1), sums[1] / sums[2].clamp_min(1)
    return ratio / (ratio - 1) * ((ratio - 1) * share.detach() * mean + (1 - share.detach()) * (1 - mean))


def entropy_loss(assignment: Float[Tensor, "B N M"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Mean entropy in nats of the rows of an assignment over valid cells: 0 where each cell has one chunk."""
    a = torch.where(valid[..., None], wide(assignment), 0)
    rows = -torch.special.xlogy(a, a.clamp_min(1e-9)).sum(-1)
    return global_mean(rows, valid)


def boundary_loss(prob: Float[Tensor, "*N"], valid: Bool[Tensor, "*N"]) -> Float[Tensor, ""]:
    """Mean of 4·p·(1 − p) over valid cells: 1 where every decision is a coin's, 0 where all are sure."""
    p = torch.where(valid, wide(prob), 0)
    return global_mean(4 * p * (1 - p), valid)
