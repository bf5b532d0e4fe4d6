"""Cuboid blocks of a 3-D grid: which cell lies in which block, and which cells surround one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polyspace.models.hnet.encoder import Grid
from polyspace.utils.misc import cached


@dataclass(frozen=True)
class BlockLayout:
    """place (N,): position of each cell in block order, where block b holds positions b·size … (b+1)·size − 1; edge
    blocks are padded with positions that no cell has. halo (num_blocks, L): positions of the cells in and around a
    block, −1 outside the grid."""

    place: Tensor
    halo: Tensor
    num_blocks: int
    size: int

    @property
    def slots(self) -> int:
        return self.num_blocks * self.size


@cached
def block_layout(grid: Grid, block: Grid, reach: int) -> BlockLayout:
    """Layout of a grid (t,h,w), cells in that order; the halo reaches `reach` cells beyond a block's faces. On the CPU,
    whatever the default device: it is made once."""
    with torch.device("cpu"):
        return _layout(grid, block, reach)


def _layout(grid: Grid, block: Grid, reach: int) -> BlockLayout:
    t, h, w = grid
    counts = [-(-n // b) for n, b in zip(grid, block, strict=True)]
    cells = torch.stack(torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij"), -1)
    size = block[0] * block[1] * block[2]
    place = _place(cells.reshape(-1, 3), counts, block, size)
    corner = torch.stack(torch.meshgrid(*(torch.arange(n) for n in counts), indexing="ij"), -1).reshape(-1, 1, 3)
    spans = [torch.arange(-reach, b + reach) for b in block]
    around = torch.stack(torch.meshgrid(*spans, indexing="ij"), -1).reshape(1, -1, 3)
    near = corner * torch.tensor(block) + around
    inside = ((near >= 0) & (near < torch.tensor(grid))).all(-1)
    halo = torch.where(inside, _place(near.clamp_min(0), counts, block, size), -1)
    return BlockLayout(place, halo, counts[0] * counts[1] * counts[2], size)


def _place(cells: Tensor, counts: list[int], block: Grid, size: int) -> Tensor:
    edge = torch.tensor(block)
    major, minor = cells // edge, cells % edge
    number = (major[..., 0] * counts[1] + major[..., 1]) * counts[2] + major[..., 2]
    inner = (minor[..., 0] * block[1] + minor[..., 1]) * block[2] + minor[..., 2]
    return number * size + inner
