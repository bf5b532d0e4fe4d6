"""Which cells belong together: attention among cells, a boundary where a place changes, and runs between boundaries.

A column of cells (one place over time) is cut where a cell differs enough from the one before it: H-Net's dynamic
chunking along time (arXiv 2507.07955, section 2.2), for every place at once. What stands still becomes one chunk
however long it lasts, what moves keeps its steps apart, and the number of chunks follows the content of each clip. On
request, or where a budget asks for fewer, runs side by side that look alike join to regions: a still wall becomes one.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyspace.models.hnet.budget import merge_to
from polyspace.models.hnet.encoder import Cells, Grid, RowFinder
from polyspace.models.hnet.gate import BoundaryGate, Likeness
from polyspace.models.hnet.regions import Edges, components, renumber, run_sizes, touching
from polyspace.models.hnet.sparse_attention import NativeSparseAttention
from polyspace.models.layers import Block, sincos_code
from polyspace.utils.misc import wide


@dataclass(frozen=True)
class Routing:
    """Cells with their context and the chunk each belongs to.

    fine (B,V,D): contextualised cells. own, before (B,V): slot of a cell's chunk, and of the chunk that its column was
    in before (its own where there is none). share (B,V): weight of `own` against `before`, 1 for hard assignment. valid
    (B,M): slots in use. prob, boundary, judged (B,V): the gate's p that a chunk begins, whether it says so, and where
    there was something to say (cells with a visible cell before them; p is 1 elsewhere). cut (B,V): where chunks do
    begin, a budget's cuts included. gated: a gate decided, not a fixed grid.
    """

    fine: Float[Tensor, "B V D"]
    own: Int[Tensor, "B V"]
    before: Int[Tensor, "B V"]
    share: Float[Tensor, "B V"]
    valid: Bool[Tensor, "B M"]
    prob: Float[Tensor, "B V"]
    boundary: Bool[Tensor, "B V"]
    judged: Bool[Tensor, "B V"]
    cut: Bool[Tensor, "B V"]
    gated: bool = True

    def confidence(self) -> Float[Tensor, "B V"]:
        """p where a chunk begins, 1 − p where none does."""
        return torch.where(self.cut, self.prob, 1 - self.prob)

    def assignment(self, cells_valid: Bool[Tensor, "B V"]) -> Float[Tensor, "B V M"]:
        """share·onehot(own) + (1 − share)·onehot(before): rows of real cells sum to 1, of padding to 0."""
        slots = self.valid.shape[1]
        rows = torch.zeros(*self.own.shape, slots, dtype=self.share.dtype, device=self.share.device)
        rows = rows.scatter_add(2, self.own[..., None], self.share[..., None])
        rows = rows.scatter_add(2, self.before[..., None], (1 - self.share)[..., None])
        return torch.where(cells_valid[..., None], rows, 0)


class SparseRouting(nn.Module):
    """Cells -> chunks: `depth` blocks of native sparse attention for context, a boundary gate along time on the cells'
    own features (so that neither position nor neighbours decide whether a place has changed), and on request the same
    gate between columns: runs that look alike and share `overlap` of their steps (intersection over union) become one
    region.

    `soft` weighs a cell between its chunk and the one before by the head's p (H-Net's smoothing, one step back), which
    gives the gate a gradient from every loss; hard assignment leaves it the ratio loss and what reads the confidence.
    `fixed` (steps, rows, columns) cuts the grid into equal blocks instead: the control that looks at no content.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        soft: bool = True,
        fixed: Grid | None = None,
        threshold: float = 0.8,
        overlap: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [Block(dim, heads, attention=NativeSparseAttention(dim, heads)) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(dim) if depth else nn.Identity()
        self.gate = BoundaryGate(dim, threshold) if fixed is None else None
        self.soft, self.fixed, self.overlap = soft, fixed, overlap

    def forward(
        self,
        cells: Cells,
        least: int | None = None,
        most: int | None = None,
        regions: bool = False,
        runs_per_chunk: float = 1.0,
    ) -> Routing:
        """Chunks of each clip's own number: its runs over `runs_per_chunk`, `most` at most. `regions` first joins all
        alike runs side by side. With `least` neither counts, there are at least so many: a clip is cut further, most
        probable boundaries first, as far as it has cells. Where there are more runs than chunks, those that touch merge
        with the least loss; what touches nowhere is for the downsampler. A fixed grid stays as it is."""
        fine = self.contextualise(cells)
        if self.gate is None:
            return self.blocks_of(cells, fine)
        _, h, w = cells.grid
        find = RowFinder(cells)
        before, judged = find.back(h * w, cells.index >= h * w)
        likeness = self.gate(cells.x)
        prob = torch.where(judged, self.gate.prob(likeness.to(before)), 1)
        boundary = (prob >= 0.5) & cells.valid
        cut = boundary if least is None else boundary | most_probable(prob, judged, cells.valid, least)
        run, earlier, head, counts = follow(before, judged, cut, cells.grid[0])
        # where only a budget asks for a cut, p is below ½: the chunk is its own cells' all the same
        share = torch.where(boundary, prob, 1).gather(1, head) if self.soft else torch.ones_like(prob)
        goal = counts if least is not None else (counts / runs_per_chunk).ceil().long()
        goal = goal if most is None else goal.clamp_max(most)
        regions = regions and least is None
        if regions or bool((goal < counts).any()):
            with torch.no_grad():
                edges = touching(cells, find, likeness, run, before, cut & judged, counts, self.overlap)
                label, counts = self.join(edges, likeness, run, cells.valid, counts, goal, regions)
            run, earlier = label.gather(1, run), label.gather(1, earlier)
        valid = torch.arange(int(counts.max()), device=run.device) < counts[:, None]
        own, earlier = (torch.where(cells.valid, s, 0) for s in (run, earlier))
        return Routing(fine, own, earlier, share, valid, prob, boundary, judged, cut)

    def join(
        self,
        edges: Edges,
        likeness: Likeness,
        run: Int[Tensor, "B V"],
        valid: Bool[Tensor, "B V"],
        counts: Int[Tensor, " B"],
        goal: Int[Tensor, " B"],
        regions: bool,
    ) -> tuple[Int[Tensor, "B M"], Int[Tensor, " B"]]:
        """Runs -> chunks 0, 1, 2 …, and how many there are."""
        assert self.gate is not None
        slots = int(counts.max())
        label = torch.arange(slots, device=run.device).expand(len(run), -1)
        a, b = edges.a, edges.b
        if regions:
            label, counts = renumber(components(a, b, edges.there & (edges.alike > self.gate.bound), slots), counts)
            run, a, b = (label.gather(1, x) for x in (run, a, b))
        if bool((counts > goal).any()):
            parts, counts = merge_runs((a, b, edges.there & (a != b)), likeness, run, valid, counts, goal)
            label = parts.gather(1, label.clamp_max(parts.shape[1] - 1))
        return label, counts

    def contextualise(self, cells: Cells, whole: bool = False) -> Float[Tensor, "B V D"]:
        """`whole`: known to have no padding, so that nobody need look."""
        x = cells.x
        if not len(self.blocks):
            return torch.where(cells.valid[..., None], x, 0)
        x = x + sincos_code(cells.coords, x.shape[-1]).to(x.dtype)
        pad = None if whole or bool(cells.valid.all()) else ~cells.valid
        t, h, w = cells.grid
        index = None if pad is None and x.shape[1] == t * h * w else cells.index  # all cells, in order
        first = cast(NativeSparseAttention, self.blocks[0].attention)
        rows = None if first.is_dense(cells.grid) else first.lay_out(x, cells.grid, index, pad)
        for block in self.blocks:  # they all see the same cells
            x = block(x, cells.grid, index, pad, None, rows)
        return torch.where(cells.valid[..., None], self.norm(x), 0)

    def blocks_of(self, cells: Cells, fine: Float[Tensor, "B V D"], whole: bool = False) -> Routing:
        """Chunks of the fixed grid: its blocks with something visible (`whole`: all), in order."""
        steps, rows, cols = self.fixed or (1, 1, 1)
        t, h, w = cells.grid
        shape = -(-t // steps), -(-h // rows), -(-w // cols)
        i = cells.index
        block = (i // (h * w) // steps * shape[1] + i // w % h // rows) * shape[2] + i % w // cols
        seen = torch.zeros(block.shape[0], shape[0] * shape[1] * shape[2], dtype=torch.long, device=block.device)
        seen = seen.scatter_reduce(1, block, cells.valid.long(), "amax")
        own = torch.where(cells.valid, (seen.cumsum(1) - 1).gather(1, block), 0)
        counts = seen.sum(1)
        most = shape[0] * shape[1] * shape[2] if whole else int(counts.max())
        valid = torch.arange(most, device=own.device) < counts[:, None]
        sure, nothing = torch.ones_like(wide(fine[..., 0])), torch.zeros_like(cells.valid)
        return Routing(fine, own, own, sure, valid, sure, cells.valid, nothing, cells.valid, gated=False)


def merge_runs(
    edges: tuple[Int[Tensor, "B E"], Int[Tensor, "B E"], Bool[Tensor, "B E"]],
    likeness: Likeness,
    run: Int[Tensor, "B V"],
    valid: Bool[Tensor, "B V"],
    counts: Int[Tensor, " B"],
    goal: Int[Tensor, " B"],
) -> tuple[Int[Tensor, "B M"], Int[Tensor, " B"]]:
    """Runs -> parts 0, 1, 2 …, `goal` a clip where the edges allow, by the codes of their cells; and how many."""
    size = run_sizes(run, valid, counts).to(likeness.code.dtype)
    code = torch.where(valid[..., None], likeness.code, 0)
    where = run.clamp_max(size.shape[1] - 1)[..., None].expand(code.shape)
    total = code.new_zeros(*size.shape, code.shape[-1]).scatter_add(1, where, code)
    return renumber(merge_to(goal, counts, total, size, edges), counts)


def most_probable(
    prob: Float[Tensor, "B V"], judged: Bool[Tensor, "B V"], valid: Bool[Tensor, "B V"], num_chunks: int
) -> Bool[Tensor, "B V"]:
    """The judged cells with the highest p, so many that heads and they make `num_chunks`."""
    first = (valid & ~judged).sum(1, keepdim=True)
    ranked = torch.where(judged, prob, -1.0).detach()
    place = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return judged & (place < num_chunks - first)


def follow(
    before: Int[Tensor, "B V"], judged: Bool[Tensor, "B V"], boundary: Bool[Tensor, "B V"], steps: int
) -> tuple[Int[Tensor, "B V"], Int[Tensor, "B V"], Int[Tensor, "B V"], Int[Tensor, " B"]]:
    """Each cell's run, numbered in the cells' order, the run that its column was in before, the row of the run's first
    cell, and the number of runs."""
    rows = torch.arange(before.shape[1], device=before.device).expand_as(before)
    head = torch.where(boundary | ~judged, rows, before)
    for _ in range(math.ceil(math.log2(max(steps, 2)))):
        head = head.gather(1, head)
    run = (boundary.long().cumsum(1) - 1).clamp_min(0).gather(1, head)
    return run, run.gather(1, before.gather(1, head)), head, boundary.sum(1)
