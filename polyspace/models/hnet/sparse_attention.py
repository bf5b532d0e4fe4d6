"""Native sparse attention over cuboids of video cells: compressed, selected and local keys, mixed by gates.

Source: Yuan et al., Native Sparse Attention, arXiv 2502.11089, section 3; here bidirectional and over 3-D blocks, with
the selection shared by all heads of a query block, so that whole blocks of keys are gathered at once.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyspace.models.hnet.blocks3d import BlockLayout, block_layout
from polyspace.models.hnet.encoder import Grid
from polyspace.models.layers import attend, key_mask, split_heads

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
    ) -> Float[Tensor, "B N D"]:
        """`cells` says where in the grid (t,h,w) each row lies (None: all of it, in order); True in the mask = pad."""
        if cells is None and x.shape[1] != grid[0] * grid[1] * grid[2]:
            raise ValueError(f"{x.shape[1]} cells do not fill the grid {grid}; say which they are with `cells`")
        q, k, v = self.qkv(x).chunk(3, -1)
        gates = self.gate(x).sigmoid().unflatten(-1, (len(BRANCHES), self.heads))  # (B,N,3,H)
        if dense is None:
            dense = grid[0] * grid[1] * grid[2] < self.sparse_from
        if dense:
            out = attend(q, k, v, self.heads, key_mask(key_padding_mask, None, q.dtype))
            return self.out((out.unflatten(-1, (self.heads, -1)) * gates.sum(2)[..., None]).flatten(2))
        mixed = self._sparse(q, k, v, gates, grid, cells, key_padding_mask)
        return self.out(mixed)

    def _sparse(
        self,
        q: Float[Tensor, "B N D"],
        k: Float[Tensor, "B N D"],
        v: Float[Tensor, "B N D"],
        gates: Float[Tensor, "B N 3 H"],
        grid: Grid,
        cells: Int[Tensor, "B N"] | None,
        pad: Bool[Tensor, "B N"] | None,
    ) -> Float[Tensor, "B N D"]:
        layout = block_layout(grid, self.block, self.reach)
        place = layout.place.to(q.device)
        place = place.expand(len(q), -1) if cells is None else place[cells]
        room = _Room(place, pad, layout)
        q, k, v = room.enter(q), room.enter(k), room.enter(v)
        compressed = room.compressed(q, k, v, self.heads)
        parts = (compressed, room.selected(q, k, v, self.heads, self.num_selected), room.local(q, k, v, self.heads))
        out = torch.zeros_like(gates[:, :, 0, :, None])
        for branch, part in enumerate(parts):
            out = out + gates[:, :, branch, :, None] * room.leave(part).unflatten(-1, (self.heads, -1))
        return out.flatten(2)


class _Room:
    """Rows of a batch laid out block by block: (B,N,D) -> (B,num_blocks·size,D), with a mask of the real ones."""

    def __init__(self, place: Int[Tensor, "B N"], pad: Bool[Tensor, "B N"] | None, layout: BlockLayout) -> None:
        self.layout, self.rows = layout, len(place)
        self.slots = layout.num_blocks * layout.size
        offset = torch.arange(self.rows, device=place.device)[:, None] * self.slots
        self.place = place + offset  # into (B·slots)
        if pad is not None:  # padding rows go to one spare row behind all others
            self.place = torch.where(pad, self.rows * self.slots, self.place)
        taken = torch.zeros(self.rows * self.slots + 1, dtype=torch.bool, device=place.device)
        taken[self.place.flatten()] = True
        self.taken = taken[:-1].view(self.rows, layout.num_blocks, layout.size)

    def enter(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B S D"]:
        out = x.new_zeros(self.rows * self.slots + 1, x.shape[-1])
        out = out.index_copy(0, self.place.flatten(), x.flatten(0, 1))
        return out[:-1].view(self.rows, self.slots, -1)

    def leave(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B N D"]:
        flat = x.reshape(self.rows * self.slots, -1)
        return flat.index_select(0, self.place.flatten().clamp_max(len(flat) - 1)).view(*self.place.shape, -1)

    def means(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B K D"]:
        """Mean over the real cells of each block (0 for an empty one); unreal rows hold 0."""
        blocks = x.view(self.rows, self.layout.num_blocks, self.layout.size, -1)
        return blocks.sum(2) / self.taken.sum(2, keepdim=True).clamp_min(1)

    def compressed(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int
    ) -> Float[Tensor, "B S D"]:
        mask = key_mask(~self.taken.any(-1), None, q.dtype)
        return attend(q, self.means(k), self.means(v), heads, mask)

    def best_blocks(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], heads: int, count: int
    ) -> Int[Tensor, "B K n"]:
        """The `count` blocks that each query block attends to most, by the heads' mean weight on compressed keys."""
        qm, km = (split_heads(self.means(part.detach()), heads) for part in (q, k))
        logits = qm @ km.transpose(-1, -2) / qm.shape[-1] ** 0.5
        logits = logits.masked_fill(~self.taken.any(-1)[:, None, None], float("-inf"))
        return logits.softmax(-1).mean(1).topk(min(count, self.layout.num_blocks), dim=-1).indices

    def selected(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int, count: int
    ) -> Float[Tensor, "B S D"]:
        best = self.best_blocks(q, k, heads, count)
        blocks, size = self.layout.num_blocks, self.layout.size
        row = (best + torch.arange(self.rows, device=q.device)[:, None, None] * blocks).flatten()

        def gather(x: Float[Tensor, "B S D"]) -> Float[Tensor, "K L D"]:
            whole = x.reshape(self.rows * blocks, -1).index_select(0, row)
            return whole.view(self.rows * blocks, best.shape[-1] * size, -1)

        real = self.taken.view(-1, size).index_select(0, row).view(self.rows * blocks, -1)
        return self._by_block(q, gather(k), gather(v), real, heads)

    def local(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int
    ) -> Float[Tensor, "B S D"]:
        halo = self.layout.halo.to(q.device)
        offset = torch.arange(self.rows, device=q.device)[:, None, None] * self.slots
        row = (halo.clamp_min(0) + offset).flatten()
        real = self.taken.flatten().index_select(0, row).view(self.rows, *halo.shape) & (halo >= 0)

        def gather(x: Float[Tensor, "B S D"]) -> Float[Tensor, "K L D"]:
            return x.flatten(0, 1).index_select(0, row).view(self.rows * len(halo), halo.shape[1], -1)

        return self._by_block(q, gather(k), gather(v), real.flatten(0, 1), heads)

    def _by_block(
        self,
        q: Float[Tensor, "B S D"],
        k: Float[Tensor, "K L D"],
        v: Float[Tensor, "K L D"],
        real: Bool[Tensor, "K L"],
        heads: int,
    ) -> Float[Tensor, "B S D"]:
        mask = None if bool(real.all()) else key_mask(~real, None, q.dtype)
        return attend(q.view(-1, self.layout.size, q.shape[-1]), k, v, heads, mask).view_as(q)
