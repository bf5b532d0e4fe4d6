"""Heads on top of an encoder's tokens."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.layers import Mlp, attend, key_mask

Pooling = Literal["mean", "attentive", "saliency", "cam"]


class TokenPool(nn.Module):
    """One cross-attention block: learned queries look at the tokens, and the mean of their answers is the clip's
    vector. As in V-JEPA's attentive probe (arXiv 2404.08471, section 4.2), a residual MLP after the attention."""

    def __init__(self, dim: int, heads: int = 4, queries: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.norm, self.keys = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 2 * dim)

    def forward(self, tokens: Float[Tensor, "B M D"], valid: Bool[Tensor, "B M"] | None = None) -> Float[Tensor, "B D"]:
        k, v = self.keys(self.norm(tokens)).chunk(2, -1)
        mask = key_mask(None if valid is None else ~valid, None, k.dtype)
        x = attend(self.queries.expand(len(tokens), -1, -1), k, v, self.heads, mask)
        x = x + self.mlp(self.norm2(x))
        return x.mean(1)


class AttentiveHead(nn.Module):
    """The one-block attentive probe: `TokenPool`, then a linear classifier."""

    def __init__(self, dim: int, classes: int, heads: int = 4, queries: int = 1) -> None:
        super().__init__()
        self.pool, self.classify = TokenPool(dim, heads, queries), nn.Linear(dim, classes)

    def forward(self, tokens: Float[Tensor, "B M D"], valid: Bool[Tensor, "B M"] | None = None) -> Float[Tensor, "B K"]:
        return self.classify(self.pool(tokens, valid))


class WeighedHead(nn.Module):
    """A weighted mean of the tokens, and a linear classifier of it.

    mean: all weigh alike, the linear probe. saliency: the weights are given (B,M), as labels. cam: the head's own class
    activation map: the softmax over tokens of each token's highest score by the same classifier (after Zhou et al.
    2016, arXiv 1512.04150, whose map only explains; here it weighs).
    """

    def __init__(self, dim: int, classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling, self.classify = pooling, nn.Linear(dim, classes)

    def weights(
        self,
        tokens: Float[Tensor, "B M D"],
        valid: Bool[Tensor, "B M"],
        saliency: Float[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B M"]:
        """Sum 1 over valid tokens; where no token is salient, all alike."""
        even = valid.to(tokens.dtype)
        if self.pooling == "cam":
            score = self.classify(tokens).amax(-1).masked_fill(~valid, torch.finfo(tokens.dtype).min)
            return score.softmax(-1) * even
        weight = even
        if self.pooling == "saliency":
            if saliency is None:
                raise ValueError("pooling 'saliency' needs saliency labels in the batch; use mean, attentive or cam")
            weight = torch.where((saliency * even).sum(1, keepdim=True) > 0, saliency, 1.0).to(tokens.dtype) * even
        return weight / weight.sum(1, keepdim=True).clamp_min(1e-6)

    def forward(
        self,
        tokens: Float[Tensor, "B M D"],
        valid: Bool[Tensor, "B M"],
        saliency: Float[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B K"]:
        return self.classify((tokens * self.weights(tokens, valid, saliency)[..., None]).sum(1))
