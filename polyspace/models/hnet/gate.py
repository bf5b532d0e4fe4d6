"""How alike two cells are, and whether that makes a boundary."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyspace.models.hnet.encoder import take_rows
from polyspace.utils.misc import full_precision, wide

HIGHEST = 0.98  # of the threshold; identical frames have likeness 1


class BoundaryGate(nn.Module):
    """p = σ((θ − cos(W before, W now)) / temperature) of a place's features: the probability that a new chunk begins.

    One map W serves both sides, so that what stands still is alike whatever W learns: with two maps that drift apart, a
    clip of one repeated frame is cut too. W is affine, random orthogonal at first; its constant part of `contrast`
    makes places of weak features (plain ground) alike whatever their noise. The threshold θ is learned: the ratio loss
    can steer the share of boundaries without turning W. H-Net's own form is p = (1 − cos)/2 with a map for each side
    (arXiv 2507.07955, equation 4). θ counts up to
    `HIGHEST` only, so that identical frames are never cut, however few chunks or many the ratio loss asks for.
    """

    def __init__(self, dim: int, threshold: float = 0.8, temperature: float = 0.1, contrast: float = 0.3) -> None:
        super().__init__()
        self.look = nn.Linear(dim, dim)
        nn.init.orthogonal_(self.look.weight)
        nn.init.constant_(self.look.bias, contrast)
        self.threshold, self.temperature = nn.Parameter(torch.tensor([threshold])), temperature  # (1,): can be cut

    def forward(self, x: Float[Tensor, "B V D"]) -> "Likeness":
        """Codes of the cells, to be compared by row."""
        with full_precision(x):
            code = F.linear(wide(x), wide(self.look.weight), wide(self.look.bias))
            return Likeness(F.normalize(code, dim=-1, eps=1e-6))

    def prob(self, alike: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        return ((self.bound - alike) / self.temperature).sigmoid()

    @property
    def bound(self) -> Float[Tensor, "1"]:
        """θ, at most `HIGHEST`, with θ's gradient above that too, so that it finds its way back."""
        theta = wide(self.threshold)
        return theta - (theta - HIGHEST).clamp_min(0).detach()


@dataclass(frozen=True)
class Likeness:
    """Unit codes of cells, (B,V,D)."""

    code: Float[Tensor, "B V D"]

    def to(self, rows: Int[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """cos between each cell and the one in `rows`."""
        return (take_rows(self.code, rows) * self.code).sum(-1)
