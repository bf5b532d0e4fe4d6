"""Heads on top of an encoder's tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.layers import Mlp, attend, key_mask


class AttentiveHead(nn.Module):
    """One cross-attention block: learned queries look at the tokens, their mean is classified.

    The one-block attentive probe of V-JEPA (arXiv 2404.08471, section 4.2) with the residual MLP after the attention.
    """

    def __init__(self, dim: int, classes: int, heads: int = 4, queries: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.norm, self.keys = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 2 * dim)
        self.classify = nn.Linear(dim, classes)

    def forward(self, tokens: Float[Tensor, "B M D"], valid: Bool[Tensor, "B M"] | None = None) -> Float[Tensor, "B K"]:
        k, v = self.keys(self.norm(tokens)).chunk(2, -1)
        mask = key_mask(None if valid is None else ~valid, None, k.dtype)
        x = attend(self.queries.expand(len(tokens), -1, -1), k, v, self.heads, mask)
        x = x + self.mlp(self.norm2(x))
        return self.classify(x.mean(1))
