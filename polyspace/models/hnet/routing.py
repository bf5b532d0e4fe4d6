"""Which cells belong together: attention among cells, a boundary where a place changes, and runs between boundaries.

A column of cells (one place over time) is cut where a cell differs enough from the one before it: H-Net's dynamic
chunking along time (arXiv 2507.07955, section 2.2), for every place at once. What stands still becomes one chunk
however long it lasts; what moves keeps its cells. The number of chunks follows the content of each clip.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyspace.models.hnet.encoder import Cells, take_rows
from polyspace.models.hnet.sparse_attention import NativeSparseAttention
from polyspace.models.layers import Mlp, sincos_code
from polyspace.utils.misc import full_precision, wide

Grid = tuple[int, int, int]


class SparseBlock(nn.Module):
    """Pre-norm block whose attention is native sparse attention over the grid."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), NativeSparseAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, round(dim * mlp_ratio))

    def forward(
        self, x: Float[Tensor, "B V D"], grid: Grid, cells: Int[Tensor, "B V"], pad: Bool[Tensor, "B V"] | None
    ) -> Float[Tensor, "B V D"]:
        x = x + self.attention(self.norm1(x), grid, cells, pad)
        return x + self.mlp(self.norm2(x))


@dataclass(frozen=True)
class Routing:
    """Cells with their context and the chunk each belongs to.

    fine (B,V,D): contextualised cells. own, before (B,V): slot of a cell's chunk, and of the chunk before it in the
    same column (its own where there is none). share (B,V): weight of `own` against `before`, 1 for hard assignment.
    head (B,M): row of each chunk's first cell; valid (B,M). boundary, prob, judged (B,V): the decisions, and where
    there was one to make (cells with a visible cell before them; for the others prob says how much they differ from
    the visible cells beside them, 1 where there are none).
    """

    fine: Float[Tensor, "B V D"]
    own: Int[Tensor, "B V"]
    before: Int[Tensor, "B V"]
    share: Float[Tensor, "B V"]
    head: Int[Tensor, "B M"]
    valid: Bool[Tensor, "B M"]
    boundary: Bool[Tensor, "B V"]
    prob: Float[Tensor, "B V"]
    judged: Bool[Tensor, "B V"]

    def assignment(self, cells_valid: Bool[Tensor, "B V"]) -> Float[Tensor, "B V M"]:
        """share·onehot(own) + (1 − share)·onehot(before): rows of real cells sum to 1, of padding to 0."""
        slots = self.valid.shape[1]
        rows = torch.zeros(*self.own.shape, slots, dtype=self.share.dtype, device=self.share.device)
        rows = rows.scatter_add(2, self.own[..., None], self.share[..., None])
        rows = rows.scatter_add(2, self.before[..., None], (1 - self.share)[..., None])
        return torch.where(cells_valid[..., None], rows, 0)


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

    def forward(self, before: Float[Tensor, "B V D"], now: Float[Tensor, "B V D"]) -> Float[Tensor, "B V"]:
        with full_precision(now):
            a = F.linear(wide(before), wide(self.before.weight))
            b = F.linear(wide(now), wide(self.now.weight))
            similarity = F.cosine_similarity(a, b, dim=-1, eps=1e-6)
            return ((wide(self.threshold) - similarity) / self.temperature).sigmoid()


class SparseRouting(nn.Module):
    """Cells -> chunks along time: `depth` blocks of native sparse attention, then a boundary gate on the cells' own
    features (before attention, so that position and neighbours don't decide whether a place has changed).

    `soft` weighs a cell between its chunk and the one before by the head's p (H-Net's smoothing, one step back), which
    gives the gate a gradient from every loss; hard assignment leaves it the ratio loss alone. `fixed` (steps) cuts
    every column into equal runs instead: the control that looks at no content.
    """

    def __init__(
        self, dim: int, heads: int, depth: int, soft: bool = True, fixed: int | None = None, threshold: float = 0.8
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SparseBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim) if depth else nn.Identity()
        self.gate = BoundaryGate(dim, threshold) if fixed is None else None
        self.soft, self.fixed = soft, fixed

    def forward(self, cells: Cells, num_chunks: int | None = None) -> Routing:
        """`num_chunks`: where the content asks for fewer, more boundaries are cut, most probable first, until so many
        chunks are there (or no cell is left). Surplus chunks are for the downsampler to merge."""
        x = cells.x
        if len(self.blocks):
            x = x + sincos_code(cells.coords, x.shape[-1]).to(x.dtype)
        pad = None if bool(cells.valid.all()) else ~cells.valid
        for block in self.blocks:
            x = block(x, cells.grid, cells.index, pad)
        fine = torch.where(cells.valid[..., None], self.norm(x), 0)
        _, h, w = cells.grid
        before, judged = neighbour_rows(cells, h * w, cells.index >= h * w)
        if self.gate is not None:
            prob = torch.where(judged, self.gate(take_rows(cells.x, before), cells.x), self.sideways(cells))
            boundary = prob >= 0.5
            if num_chunks is not None:
                boundary = boundary | most_probable(prob, judged, cells.valid, num_chunks)
        else:
            boundary = (cells.index // (cells.grid[1] * cells.grid[2])) % (self.fixed or 1) == 0
            prob = boundary.to(wide(x).dtype)
        boundary = (boundary | ~judged) & cells.valid
        return group(fine, cells, before, judged, boundary, prob, self.soft and self.gate is not None)

    def sideways(self, cells: Cells) -> Float[Tensor, "B V"]:
        """The gate between a cell and the visible ones to its left and above: the smaller p, 1 without any. It ranks
        the first chunks of columns when a budget makes some of them merge."""
        assert self.gate is not None
        _, h, w = cells.grid
        prob = torch.ones_like(wide(cells.x[..., 0]))
        for back, inside in ((1, cells.index % w > 0), (w, cells.index // w % h > 0)):
            beside, there = neighbour_rows(cells, back, inside)
            p = self.gate(take_rows(cells.x, beside), cells.x)
            prob = torch.where(there, torch.minimum(prob, p), prob)
        return prob


def neighbour_rows(
    cells: Cells, back: int, inside: Bool[Tensor, "B V"]
) -> tuple[Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Row of the cell `back` grid places before each one (the own row where it isn't visible, or where `inside` is
    False: it would lie across an edge), and whether it is there."""
    t, h, w = cells.grid
    b, v = cells.index.shape
    rows = torch.arange(v, device=cells.index.device).expand(b, -1)
    where = torch.full((b, t * h * w + 1), -1, device=rows.device, dtype=rows.dtype)
    where.scatter_(1, torch.where(cells.valid, cells.index, t * h * w), rows)
    found = where[:, :-1].gather(1, (cells.index - back).clamp_min(0))
    there = cells.valid & inside & (found >= 0)
    return torch.where(there, found, rows), there


def most_probable(
    prob: Float[Tensor, "B V"], judged: Bool[Tensor, "B V"], valid: Bool[Tensor, "B V"], num_chunks: int
) -> Bool[Tensor, "B V"]:
    """The judged cells with the highest p, so many that heads and they make `num_chunks`."""
    if num_chunks < 1:
        raise ValueError(f"num_chunks must be at least 1, not {num_chunks}")
    first = (valid & ~judged).sum(1, keepdim=True)
    ranked = torch.where(judged, prob, -1.0).detach()
    place = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return judged & (place < num_chunks - first)


def group(
    fine: Float[Tensor, "B V D"],
    cells: Cells,
    before: Int[Tensor, "B V"],
    judged: Bool[Tensor, "B V"],
    boundary: Bool[Tensor, "B V"],
    prob: Float[Tensor, "B V"],
    soft: bool,
) -> Routing:
    """Follow each cell back to the boundary that opened its run, and number the runs in the cells' order."""
    rows = torch.arange(cells.index.shape[1], device=before.device).expand_as(before)
    head = torch.where(boundary | ~judged, rows, before)
    for _ in range(math.ceil(math.log2(max(cells.grid[0], 2)))):
        head = head.gather(1, head)
    number = boundary.long().cumsum(1) - 1
    counts = boundary.sum(1)
    most = int(counts.max())
    own = number.gather(1, head)
    earlier = own.gather(1, before.gather(1, head))  # the run that the head's predecessor belongs to
    share = prob.gather(1, head) if soft else torch.ones_like(prob)
    own, earlier = (torch.where(cells.valid, s, 0) for s in (own, earlier))
    valid = torch.arange(most, device=rows.device) < counts[:, None]
    order = (~boundary).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return Routing(fine, own, earlier, share, torch.where(valid, order, 0), valid, boundary, prob, judged)
