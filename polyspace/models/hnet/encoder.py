"""Pixels -> features of base cells, so that a cell never sees a hidden pixel.

Space is cut into units of u×u pixels, time into steps of τ frames; a base cell is one unit in one step. Masks hide
whole cells. A 3-D ResNet on the whole frame would see 200 pixels around a cell, and hiding after it would hide nothing:
here the ResNet runs inside each unit, over time causally, and only on units with something visible. Features of visible
cells are then the same with and without a hidden future, and its cost falls with the hidden share.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
        """(time, row, column) of each cell's centre, in cells; 0 … n − 1 along each axis."""
        return cell_coords(self.index, self.grid).to(self.x.dtype)


def cell_coords(index: Int[Tensor, "B V"], grid: Grid) -> Float[Tensor, "B V 3"]:
    """Flat grid index -> (time, row, column) as floats."""
    _, h, w = grid
    return torch.stack([index // (h * w), index // w % h, index % w], -1).float()


def pack_visible(hidden: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Indices of the visible cells of each clip in order, padded with 0 to the most that any clip has, and `valid`."""
    seen = ~hidden
    counts = seen.sum(1)
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    valid = torch.arange(order.shape[1], device=hidden.device) < counts[:, None]
    return torch.where(valid, order, 0), valid


def expand_hidden(hidden: Bool[Tensor, "B *t h w"], grid: Grid) -> Bool[Tensor, "B N"]:
    """A mask over units (B,h,w) or over cells (B,t,h,w) -> flat cells (B,t·h·w)."""
    if tuple(hidden.shape[1:]) == grid[1:]:
        hidden = hidden[:, None].expand(-1, grid[0], -1, -1)
    if tuple(hidden.shape[1:]) != grid:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected (B,{grid[1]},{grid[2]}) or (B,*{grid})")
    return hidden.flatten(1)


def grid_of(video: Float[Tensor, "B T H W 3"], unit: int, unit_frames: int) -> Grid:
    """The base grid of a clip; its sizes must be multiples of the unit's."""
    _, t, h, w, _ = video.shape
    if t % unit_frames or h % unit or w % unit:
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


class TubeletStem(nn.Module):
    """One linear map of a cell's pixels: the embedding of the tubelet baseline (a strided 3-D convolution)."""

    def __init__(self, dim: int, unit: int, unit_frames: int) -> None:
        super().__init__()
        self.unit, self.unit_frames = unit, unit_frames
        self.project = nn.Linear(unit_frames * unit * unit * 3, dim)

    def forward(self, video: Float[Tensor, "B T H W 3"], hidden: Bool[Tensor, "B N"] | None = None) -> Cells:
        grid = grid_of(video, self.unit, self.unit_frames)
        index, valid = _visible(video, hidden, grid)
        pixels = cut_cells(video, self.unit, self.unit_frames)
        x = self.project(pixels if hidden is None else take_rows(pixels, index))
        return Cells(torch.where(valid[..., None], x, 0), index, valid, grid)


def _visible(
    video: Tensor, hidden: Bool[Tensor, "B N"] | None, grid: Grid
) -> tuple[Int[Tensor, "B V"], Bool[Tensor, "B V"]]:
    if hidden is None:
        cells = grid[0] * grid[1] * grid[2]
        index = torch.arange(cells, device=video.device).expand(len(video), -1)
        return index, torch.ones_like(index, dtype=torch.bool)
    index, valid = pack_visible(hidden)
    return index.to(video.device), valid.to(video.device)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N,C,T,H,W): statistics of one place and time only, so nothing leaks."""

    def forward(self, x: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N C T H W"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class CausalConv3d(nn.Conv3d):
    """3-D convolution in a unit: zero padding in space; in time only before the clip (output t sees ≤ t), by its first
    frame, so that what stands still has the same features at all times."""

    def __init__(self, into: int, out: int, stride: int = 1, spatial: int = 3) -> None:
        super().__init__(into, out, (3, spatial, spatial), (1, stride, stride), (0, spatial // 2, spatial // 2))

    def forward(self, x: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N E T R S"]:
        return super().forward(torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1), x], 2))


class ResidualUnit(nn.Module):
    """The basic block of ResNet-18 in 3-D, pre-norm: two convolutions and a skip (1×1×1 where the shape changes)."""

    def __init__(self, into: int, out: int, stride: int, spatial: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(into), CausalConv3d(into, out, stride, spatial)
        self.norm2, self.conv2 = ChannelNorm(out), CausalConv3d(out, out, 1, spatial)
        same = into == out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv3d(into, out, 1, (1, stride, stride))

    def forward(self, x: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N E T R S"]:
        y = self.conv1(F.gelu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.gelu(self.norm2(y)))


class ColumnResNet(nn.Module):
    """ResNet-18-3D inside each unit column, temporal resolution kept; channels width·(1, 2, 4, 8).

    A stem halves the unit, stage 1 halves it again from 16 px on, every later stage halves it until it is one pixel;
    kernels are 3×3×3, and 3×1×1 where the map is one pixel. A cell's feature is a linear map of its own pixels (the
    tubelet embedding, which alone keeps all motion at random init) plus linear maps of the last map that still has
    a layout (2×2) and of the deepest one, each over the cell's τ frames.
    """

    def __init__(self, dim: int, unit: int, unit_frames: int, width: int, blocks: tuple[int, ...] = (2, 2, 2, 2)):
        super().__init__()
        if unit < 4 or unit & (unit - 1):
            raise ValueError(f"a unit's side is a power of two from 4 on, not {unit}")
        self.unit, self.unit_frames = unit, unit_frames
        self.pixels = nn.Linear(unit_frames * unit * unit * 3, dim)
        self.stem = CausalConv3d(3, width, stride=2)
        stages, side, channels = [], unit // 2, width
        self.layout_stage = 0
        for number, depth in enumerate(blocks):
            out = width * 2**number
            stride = 2 if side > 1 and (number > 0 or side > 4) else 1
            side = -(-side // stride)
            spatial = 3 if side > 1 else 1
            first = ResidualUnit(channels, out, stride, spatial)
            stages.append(nn.Sequential(first, *(ResidualUnit(out, out, 1, spatial) for _ in range(depth - 1))))
            channels = out
            if side == 2:
                self.layout_stage, layout = number, 4 * out
        self.stages = nn.ModuleList(stages)
        self.from_layout = nn.Linear(unit_frames * layout, dim)
        self.from_deep = nn.Linear(unit_frames * channels * side * side, dim)

    def forward(self, video: Float[Tensor, "B T H W 3"], hidden: Bool[Tensor, "B N"] | None = None) -> Cells:
        grid = grid_of(video, self.unit, self.unit_frames)
        t, h, w = grid
        index, valid = _visible(video, hidden, grid)
        pixels = cut_cells(video, self.unit, self.unit_frames)
        flat = pixels if hidden is None else take_rows(pixels, index)
        x = self.pixels(flat)
        columns = pixels.view(len(video), t, h * w, -1).transpose(1, 2).flatten(0, 1)  # (B·h·w, t, P)
        row = None
        if hidden is not None:
            hidden = hidden.to(video.device)
            columns = columns.masked_fill(hidden.view(-1, t, h * w).transpose(1, 2).reshape(-1, t, 1), 0)
            keep = ~hidden.view(-1, t, h * w).all(1).flatten()  # columns with anything visible
            last = int((~hidden).view(-1, t, h * w).any(2).any(0).nonzero().max()) + 1
            columns, row = columns[keep, :last], keep.long().cumsum(0) - 1
        deep = self.columns(columns)  # (n, last, dim)
        clip = torch.arange(len(video), device=video.device)[:, None] * (h * w)
        column = clip + index % (h * w)
        column = column if row is None else row[column].clamp_min(0)
        step = (index // (h * w)).clamp_max(deep.shape[1] - 1)
        x = x + deep[column, step]
        return Cells(torch.where(valid[..., None], x, 0), index, valid, grid)

    def columns(self, pixels: Float[Tensor, "n t P"]) -> Float[Tensor, "n t D"]:
        n, t, _ = pixels.shape
        u = self.unit
        x = pixels.reshape(n, t * self.unit_frames, u, u, 3).permute(0, 4, 1, 2, 3)
        x, layout = self.stem(x), None
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == self.layout_stage:
                layout = x
        assert layout is not None
        return self.from_layout(_by_step(layout, t)) + self.from_deep(_by_step(x, t))


def _by_step(x: Float[Tensor, "n C T H W"], steps: int) -> Float[Tensor, "n steps E"]:
    """Frames of a step side by side: (n,C,T,H,W) -> (n, steps, τ·C·H·W)."""
    x = x.movedim(2, 1)
    return x.reshape(len(x), steps, -1)
