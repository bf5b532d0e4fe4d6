"""Native sparse attention over cuboids of video cells: compressed, selected and local keys, mixed by gates.

Source: Yuan et al., Native Sparse Attention, arXiv 2502.11089, section 3; here bidirectional and over 3-D blocks, with
the selection shared by all heads of a query block, so that whole blocks of keys are gathered at once.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyspace.models.hnet.block_rows import BlockRows
from polyspace.models.hnet.blocks3d import block_layout
from polyspace.models.hnet.encoder import Grid
from polyspace.models.layers import attend, key_mask

BRANCHES = ("compressed", "selected", "local")
# Grids of so many cells are attended to sparsely: where that becomes the faster form on a CPU (bench/attention.py). The
# grid decides, not the device or what is visible, so that a model is the same function everywhere.
SPARSE_FROM = 1600


class NativeSparseAttention(nn.Module):
    """Attention of N cells of a grid: out = Σ_branch gate_branch · attention(q, keys of that branch).

    compressed: one mean key and value a block; selected: all cells of the `num_selected` blocks whose mean key fits
    the query block's mean query best; local: the cells in and `reach` cells around the query's block. Gates are
    sigmoids per cell and head, 1/3 each at the start. On grids of less than `sparse_from` cells, or with `dense`,
    every branch sees all cells: (Σ gates) · dense attention. Padding never enters a mean, a key or a selection.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        block: Grid = (4, 4, 4),
        num_selected: int = 8,
        reach: int = 1,
        sparse_from: int = SPARSE_FROM,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        self.heads, self.block, self.num_selected, self.reach = heads, block, num_selected, reach
        self.sparse_from = sparse_from
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, len(BRANCHES) * heads)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -0.6931)  # sigmoid⁻¹(1/3)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        grid: Grid,
        cells: Int[Tensor, "B N"] | None = None,
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
        dense: bool | None = None,
        rows: BlockRows | None = None,
    ) -> Float[Tensor, "B N D"]:
        """`cells` says where in the grid (t,h,w) each row lies (None: all of it, in order); True in the mask = pad.
        `dense` overrules the choice between the two; `rows` is what `lay_out` said of the same cells."""
        if cells is None and x.shape[1] != math.prod(grid):
            raise ValueError(f"{x.shape[1]} cells do not fill the grid {grid}; say which they are with `cells`")
        q, k, v = self.qkv(x).chunk(3, -1)
        gates = self.gate(x).sigmoid().unflatten(-1, (len(BRANCHES), self.heads))  # (B,N,3,H)
        if dense is None:
            dense = self.is_dense(grid)
        if dense:
            out = attend(q, k, v, self.heads, key_mask(key_padding_mask, None, q.dtype))
            return self.out((out.unflatten(-1, (self.heads, -1)) * gates.sum(2)[..., None]).flatten(2))
        rows = rows or self.lay_out(x, grid, cells, key_padding_mask)
        return self.out(self._sparse(q, k, v, gates, rows))

    def is_dense(self, grid: Grid) -> bool:
        """Whether cells of a grid attend to all others, there being few."""
        return math.prod(grid) < self.sparse_from

    def lay_out(
        self,
        x: Float[Tensor, "B N D"],
        grid: Grid,
        cells: Int[Tensor, "B N"] | None = None,
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
    ) -> BlockRows:
        """Where the cells lie in blocks. Layers with blocks of one shape share it: it costs a sort, and on a GPU two
        waits for the device."""
        layout = block_layout(grid, self.block, self.reach)
        place = layout.place.to(x.device)
        place = place.expand(x.shape[0], -1) if cells is None else place[cells]
        return BlockRows(place, key_padding_mask, layout, whole=cells is None and key_padding_mask is None)

    def _sparse(
        self,
        q: Float[Tensor, "B N D"],
        k: Float[Tensor, "B N D"],
        v: Float[Tensor, "B N D"],
        gates: Float[Tensor, "B N 3 H"],
        rows: BlockRows,
    ) -> Float[Tensor, "B N D"]:
        q, k, v = rows.enter(q), rows.enter(k), rows.enter(v)
        compressed = rows.compressed(q, k, v, self.heads)
        parts = (compressed, rows.selected(q, k, v, self.heads, self.num_selected), rows.local(q, k, v, self.heads))
        out = torch.zeros_like(gates[:, :, 0, :, None])
        for branch, part in enumerate(parts):
            out = out + gates[:, :, branch, :, None] * rows.leave(part).unflatten(-1, (self.heads, -1))
        return out.flatten(2)
