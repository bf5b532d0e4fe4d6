"""The only transformer block of the house, and the one positional code that every grid and chunk uses."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.utils.distrib import zigzag_ring_attention
from polyspace.utils.misc import wide


def sincos_code(coords: Float[Tensor, "*N 3"], dim: int, base: float = 10000.0) -> Float[Tensor, "*N D"]:
    """Continuous 3-D sin-cos code of (time, row, column) in base-cell units, fractions allowed.

    About a quarter of the width goes to time, the rest to row and column alike. Equal coordinates have equal codes
    whether they are a grid cell's, a chunk's centroid or a query's: a predictor can then extrapolate from one to the
    other.
    """
    if dim % 8:
        raise ValueError(f"the width of a position code must be a multiple of 8, not {dim}")
    side = 3 * dim // 8 // 2 * 2
    parts = []
    for axis, width in enumerate((dim - 2 * side, side, side)):
        place = wide(coords[..., axis : axis + 1])
        angle = place * base ** (-torch.arange(width // 2, device=coords.device, dtype=place.dtype) / (width // 2))
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, -1).to(coords.dtype)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, out or dim)

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        return self.fc2(F.gelu(self.fc1(x)))


def split_heads(x: Float[Tensor, "B N D"], heads: int) -> Float[Tensor, "B H N E"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B H N E"]) -> Float[Tensor, "B N D"]:
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Float[Tensor, "B N D"],
    k: Float[Tensor, "B M D"],
    v: Float[Tensor, "B M D"],
    heads: int,
    mask: Float[Tensor, "#B 1 *N M"] | None = None,
) -> Float[Tensor, "B N D"]:
    """Multi-head softmax(q·kᵀ/√E + mask)·v, by SDPA."""
    q, k, v = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
    return join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class Attention(nn.Module):
    """Multi-head self-attention by SDPA. `key_padding_mask` (B,N) True = padding, never attended to.

    `key_bias` (B,N) is added to the logits of a key, e.g. log of the cells a chunk stands for. With a `context` group
    x is this rank's part of a sequence (utils/sequence.py) and attends to the other ranks' parts too.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
        key_bias: Float[Tensor, "B N"] | None = None,
        context: dist.ProcessGroup | None = None,
    ) -> Float[Tensor, "B N D"]:
        q, k, v = self.qkv(x).chunk(3, -1)
        if context is not None:
            q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
            masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "key_bias": key_bias}
            return self.out(join_heads(zigzag_ring_attention(q, k, v, group=context, **masks)))
        return self.out(attend(q, k, v, self.heads, key_mask(key_padding_mask, key_bias, q.dtype)))


def key_mask(
    key_padding_mask: Bool[Tensor, "B N"] | None, key_bias: Float[Tensor, "B N"] | None, dtype: torch.dtype
) -> Float[Tensor, "B 1 1 N"] | None:
    """Both kinds of mask as one additive term; None where there is neither. Padding gets the lowest finite number,
    so that a row without any key gives a mean, not NaN."""
    if key_padding_mask is None:
        return None if key_bias is None else key_bias[:, None, None].to(dtype)
    bias = torch.zeros((), dtype=dtype, device=key_padding_mask.device) if key_bias is None else key_bias.to(dtype)
    return torch.where(key_padding_mask, torch.finfo(dtype).min, bias)[:, None, None]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(LN x), then x + Mlp(LN x).

    `attention` is any module (x, *where) -> x's shape, self-attention by default; forward hands `where` on to it.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), attention or Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, round(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "B N D"], *where: Any) -> Float[Tensor, "B N D"]:
        x = x + self.attention(self.norm1(x), *where)
        return x + self.mlp(self.norm2(x))
