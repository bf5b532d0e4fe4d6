"""What every encoder of the house returns."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyspace.utils.misc import masked_mean


@dataclass(frozen=True)
class Features:
    """Tokens of a batch of clips, in (time, row, column) order where they lie on a grid.

    tokens (B,M,D); `grid` (t,h,w) the base grid, t·h·w = M unless cells are hidden or tokens are chunks. `clip` is what
    the model's own head would read (its class token, or its normalised mean); None means the plain mean. From encoders
    of the house also valid (B,M) True where real, centroids (B,M,3) and sizes (B,M) in cells; from chunk encoders the
    assignment (B,t·h·w,M) of cells to chunks, 0 where hidden. Padded slots are 0.
    """

    tokens: Float[Tensor, "B M D"]
    grid: tuple[int, int, int] | None = None
    clip: Float[Tensor, "B D"] | None = None
    valid: Bool[Tensor, "B M"] | None = None
    centroids: Float[Tensor, "B M 3"] | None = None
    sizes: Float[Tensor, "B M"] | None = None
    assignment: Float[Tensor, "B N M"] | None = None

    @property
    def pooled(self) -> Float[Tensor, "B D"]:
        """One vector a clip."""
        if self.clip is not None:
            return self.clip
        return self.tokens.mean(1) if self.valid is None else masked_mean(self.tokens, self.valid)

    @property
    def num_chunks(self) -> Tensor:
        """Real tokens per clip (B,)."""
        if self.valid is None:
            return torch.full((len(self.tokens),), self.tokens.shape[1], device=self.tokens.device)
        return self.valid.sum(1)
