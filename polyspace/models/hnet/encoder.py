"""Pixels -> features of base cells, so that a cell never sees a hidden pixel.

Space is cut into units of u×u pixels, time into steps of τ frames; a base cell is one unit in one step. Masks hide
whole cells. A 3-D ResNet on the whole frame would see 200 pixels around a cell, and hiding after it would hide nothing:
here the ResNet runs inside each unit, over time causally, and only on units with something visible. Features of visible
cells are then the same with and without a hidden future, and its cost falls with the hidden share.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Cells:
    """Visible base cells of a batch, packed: x (B,V,D), index (B,V) into the flat (t,h,w) grid, valid (B,V).

    Rows without a cell come last, hold zeros and index 0. Order within a clip is (time, row, column).
    """

    x: Float[Tensor, "B V D"]
    index: Int[Tensor, "B V"]
    valid: Bool[Tensor, "B V"]
    grid: Grid

    @property
    def coords(self) -> Float[Tensor, "B V 3"]:
        """(time, row, column) of each cell's centre, in cells; 0 … n − 1 along each axis; fp32 whatever x is."""
        return cell_coords(self.index, self.grid)


def cell_coords(index: Int[Tensor, "B V"], grid: Grid) -> Float[Tensor, "B V 3"]:
    """Flat grid index -> (time, row, column) as floats."""
    _, h, w = grid
    return torch.stack([index // (h * w), index // w % h, index % w], -1).float()


def pack_visible(hidden: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Indices of the visible cells of each clip in order, padded with 0 to the most that any clip has, and `valid`."""
    seen = ~hidden
    counts = seen.sum(1)
    if not bool(seen.any()):
        raise ValueError("every cell of every clip is hidden: there is nothing to encode")
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    valid = torch.arange(order.shape[1], device=hidden.device) < counts[:, None]
    return torch.where(valid, order, 0), valid


def expand_hidden(hidden: Bool[Tensor, "B *t h w"], grid: Grid, clips: int) -> Bool[Tensor, "B N"]:
    """A mask over units (B,h,w) or over cells (B,t,h,w) of so many clips -> flat cells (B,t·h·w)."""
    if hidden.dtype != torch.bool:
        raise ValueError(f"hidden must be bool, True = not to be seen; it is {hidden.dtype}")
    if len(hidden) != clips:
        raise ValueError(f"hidden has {len(hidden)} clips, the video has {clips}")
    if tuple(hidden.shape[1:]) == grid[1:]:
        hidden = hidden[:, None].expand(-1, grid[0], -1, -1)
    if tuple(hidden.shape[1:]) != grid:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected (B,{grid[1]},{grid[2]}) or (B,*{grid})")
    return hidden.flatten(1)


def grid_of(video: Float[Tensor, "B T H W 3"], unit: int, unit_frames: int) -> Grid:
    """The base grid of a clip; its sizes must be multiples of the unit's, and above 0."""
    _, t, h, w, _ = video.shape
    if not video.shape[0]:
        raise ValueError("a batch without a clip")
    if not t * h * w or t % unit_frames or h % unit or w % unit:
        raise ValueError(f"a clip of {t}×{h}×{w} does not divide into units of {unit_frames} frames × {unit}² pixels")
    return t // unit_frames, h // unit, w // unit


def cut_cells(video: Float[Tensor, "B T H W 3"], unit: int, unit_frames: int) -> Float[Tensor, "B N P"]:
    """Pixels of each cell, flat: (B, t·h·w, τ·u·u·3)."""
    b, *_ = video.shape
    t, h, w = grid_of(video, unit, unit_frames)
    x = video.view(b, t, unit_frames, h, unit, w, unit, 3)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t * h * w, -1)


def take_rows(x: Float[Tensor, "B N D"], index: Int[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def visible_pixels(
    pixels: Float[Tensor, "B N P"], index: Int[Tensor, "B V"], valid: Bool[Tensor, "B V"]
) -> Float[Tensor, "B V P"]:
    """Pixels of the visible cells, 0 in rows without one: not even a gradient sees what is hidden, were it NaN."""
    return torch.where(valid[..., None], take_rows(pixels, index), 0)


class TubeletStem(nn.Module):
    """One linear map of a cell's pixels: the embedding of the tubelet baseline (a strided 3-D convolution)."""

    def __init__(self, dim: int, unit: int, unit_frames: int) -> None:
        super().__init__()
        self.unit, self.unit_frames = unit, unit_frames
        self.project = nn.Linear(unit_frames * unit * unit * 3, dim)

    def forward(self, video: Float[Tensor, "B T H W 3"], hidden: Bool[Tensor, "B N"] | None = None) -> Cells:
        grid = grid_of(video, self.unit, self.unit_frames)
        index, valid = visible_cells(video, hidden, grid)
        pixels = cut_cells(video, self.unit, self.unit_frames)
        x = self.project(pixels if hidden is None else visible_pixels(pixels, index, valid))
        return Cells(torch.where(valid[..., None], x, 0), index, valid, grid)


def visible_cells(
    video: Tensor, hidden: Bool[Tensor, "B N"] | None, grid: Grid
) -> tuple[Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Index and validity of the packed visible cells; every cell in order where nothing is hidden."""
    if hidden is None:
        cells = grid[0] * grid[1] * grid[2]
        index = torch.arange(cells, device=video.device).expand(video.shape[0], -1)
        return index, torch.ones_like(index, dtype=torch.bool)
    index, valid = pack_visible(hidden)
    return index.to(video.device), valid.to(video.device)


class RowFinder:
    """Rows of packed cells by their place in the grid."""

    def __init__(self, cells: Cells) -> None:
        t, h, w = cells.grid
        b, v = cells.index.shape
        self.cells = cells
        self.rows = torch.arange(v, device=cells.index.device).expand(b, -1)
        where = torch.full((b, t * h * w + 1), -1, device=self.rows.device, dtype=self.rows.dtype)
        self.where = where.scatter(1, torch.where(cells.valid, cells.index, t * h * w), self.rows)[:, :-1]

    def back(self, places: int, inside: Bool[Tensor, "B V"]) -> tuple[Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
        """Row of the cell so many grid places before each one (the own row where it isn't visible, or where `inside` is
        False: it would lie across an edge), and whether it is there."""
        found = self.where.gather(1, (self.cells.index - places).clamp_min(0))
        there = self.cells.valid & inside & (found >= 0)
        return torch.where(there, found, self.rows), there
