"""Where a chunk is and how much it covers, as a vector added to it."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.layers import Mlp, sincos_code

Kind = Literal["adaptive", "centroid", "none"]


class ChunkPosition(nn.Module):
    """code(centroid) + c, c from MLP[centroid, log size, size]: the continuous sin-cos code that cells and queries
    carry too, and a learned correction, zero at the start, that knows the size. It can't become louder than the code
    (its mean square stays below the code's ½): places are easy to predict, so that pretraining would have them drown
    the content.
    Centroids and sizes are in cells; `extent` (the usual number of cells along an axis) brings the MLP's inputs near 1.
    Kind "centroid" is the code alone, "none" zeros."""

    def __init__(self, dim: int, kind: Kind = "adaptive", extent: float = 8.0) -> None:
        super().__init__()
        self.dim, self.kind, self.extent = dim, kind, extent
        self.mlp = Mlp(5, dim, dim) if kind == "adaptive" else None
        if self.mlp is not None:
            nn.init.zeros_(self.mlp.fc2.weight)
            nn.init.zeros_(self.mlp.fc2.bias)

    def forward(self, centroids: Float[Tensor, "B M 3"], sizes: Float[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
        code = sincos_code(centroids, self.dim)
        if self.kind == "none":
            return torch.zeros_like(code)
        if self.mlp is None:
            return code
        size = sizes[..., None]
        facts = torch.cat([centroids / self.extent, size.clamp_min(1e-3).log(), size / self.extent**2], -1)
        return code + bounded(self.mlp(facts.to(self.mlp.fc1.weight.dtype)))


def bounded(x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """x as it is while it is small, with a mean square below ½ however large it is."""
    return x * (1 + 2 * x.square().mean(-1, keepdim=True)).rsqrt()
