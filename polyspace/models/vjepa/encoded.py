"""What an encoder knows about a batch, and of that what it hands to its users."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyspace.models.features import Features
from polyspace.models.hnet.dechunker import dechunk, to_grid
from polyspace.models.hnet.downsampler import Chunks
from polyspace.models.hnet.encoder import Cells
from polyspace.models.hnet.routing import Routing
from polyspace.utils.misc import masked_mean


@dataclass(frozen=True)
class Encoded:
    """What an encoder knows about a batch: its tokens with places and sizes, over the visible cells (B,V).

    For chunk encoders also the cells, the routing and the assignment of cells to tokens (B,V,M); None for tubelets,
    whose tokens are the cells.
    """

    tokens: Float[Tensor, "B M D"]
    valid: Bool[Tensor, "B M"]
    centroids: Float[Tensor, "B M 3"]
    sizes: Float[Tensor, "B M"]
    cells: Cells
    routing: Routing | None = None
    chunks: Chunks | None = None

    def pooled(self) -> Float[Tensor, "B D"]:
        """Mean of the clip's tokens."""
        return masked_mean(self.tokens, self.valid)

    def pool_map(self, maps: Float[Tensor, "B t h w"]) -> Float[Tensor, "B M"]:
        """A value of each base cell -> of each token: the mean over its cells, by the assignment; 0 where padded."""
        own = maps.flatten(1).gather(1, self.cells.index) * self.cells.valid
        if self.chunks is None:
            return own
        a = self.chunks.assignment.to(own.dtype)
        return torch.where(self.valid, (own[:, None] @ a).squeeze(1) / a.sum(1).clamp_min(1e-6), 0)

    def on_cells(self) -> Float[Tensor, "B V D"]:
        """Latents of the visible cells: the tokens handed back to the cells they stand for."""
        if self.chunks is None or self.routing is None:
            return self.tokens
        return dechunk(self.tokens, self.chunks.assignment, self.routing.confidence() if self.routing.gated else None)

    def on_grid(self) -> Float[Tensor, "B N D"]:
        """The same on the whole grid, zeros where hidden."""
        t, h, w = self.cells.grid
        return to_grid(self.on_cells(), self.cells.index, self.cells.valid, t * h * w)


def features_of(encoded: Encoded) -> Features:
    assignment, cells = None, encoded.cells
    if encoded.chunks is not None:
        t, h, w = cells.grid
        assignment = to_grid(encoded.chunks.assignment, cells.index, cells.valid, t * h * w)
    return Features(
        tokens=encoded.tokens,
        grid=cells.grid,
        valid=encoded.valid,
        centroids=encoded.centroids,
        sizes=encoded.sizes,
        assignment=assignment,
    )
