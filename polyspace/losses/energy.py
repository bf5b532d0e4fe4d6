"""Energy of a prediction: how far it is from the target it should meet, lower is better.

Energies take matching tensors (…, D); what lies behind them (grid cells, chunks, clips of two modalities) is the
caller's. All compute in fp32 or wider, and means are over the items of all ranks.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from polyspace.utils.distrib import all_gather_cat, all_reduce_sum
from polyspace.utils.misc import wide

Kind = Literal["l1", "smooth_l1", "l2", "cosine"]


def energy(x: Float[Tensor, "*N D"], y: Float[Tensor, "*N D"], kind: Kind = "l1") -> Float[Tensor, "*N"]:
    """E(x, y) per item: mean over D of |x − y| (l1), its Huber form with a unit knee (smooth_l1), of (x − y)² (l2), or
    1 − cos(x, y). V-JEPA 2 uses l1 (arXiv 2506.09985, section 2.1)."""
    x, y = wide(x), wide(y)
    if kind == "l1":
        return (x - y).abs().mean(-1)
    if kind == "smooth_l1":
        return F.smooth_l1_loss(x, y, reduction="none").mean(-1)
    if kind == "l2":
        return (x - y).square().mean(-1)
    if kind == "cosine":
        return 1 - F.cosine_similarity(x, y, dim=-1)
    raise ValueError(f"unknown energy {kind!r}; use l1, smooth_l1, l2 or cosine")


def energy_loss(
    x: Float[Tensor, "*N D"],
    y: Float[Tensor, "*N D"],
    weight: Float[Tensor, "*N"] | Bool[Tensor, "*N"] | None = None,
    kind: Kind = "l1",
) -> Float[Tensor, ""]:
    """Weighted mean of the energies of items with weight > 0; y is a constant (no gradient goes into the target).

    Items of weight 0 may hold anything, NaN too, and get no gradient. Without any weight the loss is 0.
    """
    y = y.detach()
    if weight is None:
        return global_mean(energy(x, y, kind))
    used = (weight > 0)[..., None]
    e = energy(torch.where(used, x, 0), torch.where(used, y, 0), kind)
    return global_mean(e, weight)


def global_mean(
    x: Float[Tensor, "*N"], weight: Float[Tensor, "*N"] | Bool[Tensor, "*N"] | None = None
) -> Float[Tensor, ""]:
    """Mean, weighted or not, over the items of all ranks, with gradient; 0 where nothing has weight. Items of weight 0
    may be NaN."""
    w = torch.ones_like(x) if weight is None else weight.to(x.dtype)
    total, count = all_reduce_sum(torch.stack([(torch.where(w > 0, x, 0) * w).sum(), w.sum()]))
    return total / count.clamp_min(1e-12)


def aligned_energy_loss(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], kind: Kind = "cosine", margin: float = 0.5
) -> Float[Tensor, ""]:
    """Energy of two modalities of the same items (video and text, video and action): low for pairs, and at least
    `margin` higher for the other items of the batch.

    mean_i E(a_i, b_i) + mean_{i≠j} relu(margin + E(a_i, b_i) − E(a_i, b_j)); gradients go into both sides. Hinge form
    of LeCun et al., A tutorial on energy-based learning (2006), section 2.2. A single item has no negative.
    """
    a, b = all_gather_cat(a), all_gather_cat(b)
    n = len(a)
    pair = energy(a, b, kind)
    if n < 2:
        return pair.mean()
    left, right = a[:, None].expand(n, n, -1), b[None].expand(n, n, -1)
    gap = torch.relu(margin + pair[:, None] - energy(left, right, kind))
    others = ~torch.eye(n, dtype=torch.bool, device=a.device)
    return pair.mean() + gap[others].mean()
