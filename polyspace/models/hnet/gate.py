"""How alike two cells are, and whether that makes a boundary."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyspace.models.hnet.encoder import take_rows
from polyspace.utils.misc import full_precision, wide


class BoundaryGate(nn.Module):
    """p = σ((θ − cos(W_q h_before, W_k h_now)) / temperature): the probability that a new chunk begins.

    W_q and W_k start as the identity; the threshold θ is learned, so that the ratio loss can steer the share of
    boundaries without turning the projections. H-Net's own form is p = (1 − cos)/2, whose order is the same.
    """

    def __init__(self, dim: int, threshold: float = 0.8, temperature: float = 0.1) -> None:
        super().__init__()
        self.before, self.now = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        nn.init.eye_(self.before.weight)
        nn.init.eye_(self.now.weight)
        self.threshold, self.temperature = nn.Parameter(torch.tensor(threshold)), temperature

    def forward(self, x: Float[Tensor, "B V D"]) -> "Likeness":
        """Codes of the cells in both roles, to be compared by row."""
        with full_precision(x):
            roles = (F.linear(wide(x), wide(role.weight)) for role in (self.before, self.now))
            return Likeness(*(F.normalize(code, dim=-1, eps=1e-6) for code in roles))

    def prob(self, alike: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        return ((wide(self.threshold) - alike) / self.temperature).sigmoid()


@dataclass(frozen=True)
class Likeness:
    """Unit codes of cells as the earlier and as the later one of a pair, (B,V,D) each."""

    earlier: Float[Tensor, "B V D"]
    later: Float[Tensor, "B V D"]

    def to(self, rows: Int[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """cos between the cell in `rows` and each cell after it."""
        return (take_rows(self.earlier, rows) * self.later).sum(-1)

    def beside(self, rows: Int[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The same for cells beside each other, where neither is the earlier one: the mean of both ways."""
        return (self.to(rows) + (take_rows(self.later, rows) * self.earlier).sum(-1)) / 2
