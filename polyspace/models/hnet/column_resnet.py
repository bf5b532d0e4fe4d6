"""A 3-D ResNet that runs inside each unit of a video, causal in time."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.hnet.encoder import Cells, cut_cells, grid_of, visible_cells, visible_pixels
from polyspace.utils.misc import cached, full_precision

# Maps of up to so many values a frame are convolved by one matrix product: faster for tiny maps than a convolution.
MATRIX_VALUES = 256


class CausalConv3d(nn.Module):
    """frames×k×k convolution of (n,T,H,W,C) in a unit: zero padding in space; in time only before the clip (output t
    sees ≤ t), by its first frame, so that what stands still has the same features at all times."""

    def __init__(self, into: int, out: int, stride: int = 1, spatial: int = 3, frames: int = 3) -> None:
        super().__init__()
        plain = nn.Conv3d(into, out, (frames, spatial, spatial))
        self.weight, self.bias = plain.weight, plain.bias
        self.stride, self.pad = stride, spatial // 2

    def forward(self, x: Float[Tensor, "n T H W C"]) -> Float[Tensor, "n T R S E"]:
        n, t, h, w, c = x.shape
        frames = self.weight.shape[2]
        x = torch.cat([x[:, :1]] * (frames - 1) + [x], 1) if frames > 1 else x
        if h * w * c > MATRIX_VALUES:
            step, pad = (1, self.stride, self.stride), (0, self.pad, self.pad)
            return F.conv3d(x.permute(0, 4, 1, 2, 3), self.weight, self.bias, step, pad).permute(0, 2, 3, 4, 1)
        matrix, (r, s) = self.matrix(h, w)
        x = x.flatten(2)
        windows = torch.cat([x[:, k : k + t] for k in range(frames)], -1) if frames > 1 else x  # (n,T,frames·H·W·C)
        return F.linear(windows, matrix, self.bias.repeat(r * s)).view(n, t, r, s, -1)

    def matrix(self, h: int, w: int) -> tuple[Float[Tensor, "O I"], tuple[int, int]]:
        """The same linear map of an h×w unit as one matrix, (frame, row, column, channel) -> (row, column, channel)."""
        weight, size = self.weight, self.weight.shape[-1]
        rows, cols = (taps(side, size, self.stride, self.pad, weight.device).to(weight.dtype) for side in (h, w))
        with full_precision(weight):
            kernel = torch.tensordot(weight, cols, dims=([4], [0]))  # (E,C,frames,k,W,S)
            kernel = torch.tensordot(kernel, rows, dims=([3], [0]))  # (E,C,frames,W,S,H,R)
        kernel = kernel.permute(6, 4, 0, 2, 5, 3, 1)  # (R,S,E,frames,H,W,C)
        return kernel.flatten(3).flatten(0, 2), (rows.shape[2], cols.shape[2])


@cached
def taps(side: int, size: int, stride: int, pad: int, device: torch.device) -> Float[Tensor, "k I O"]:
    """1 where a tap of the kernel joins an input to an output, along one axis of a unit."""
    with torch.inference_mode(False), device:
        tap = torch.arange(side)[:, None] - stride * torch.arange((side + 2 * pad - size) // stride + 1) + pad
        return (tap == torch.arange(size)[:, None, None]).float()


class FrameNorm(nn.Module):
    """LayerNorm over one frame of one unit, all places and channels, with a scale and shift a channel: nothing crosses
    times or units."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "n T H W C"]) -> Float[Tensor, "n T H W C"]:
        scale, shift = (p.expand(x.shape[2:]) for p in (self.weight, self.bias))
        return F.layer_norm(x, x.shape[2:], scale, shift)


def convolution(into: int, out: int, stride: int, spatial: int, factored: bool) -> nn.Module:
    """3×k×k; `factored`: 1×k×k, GELU, 3×1×1, the "(2+1)D" of R(2+1)D (arXiv 1711.11248, section 3.5) with as many
    channels between as behind."""
    if not factored or spatial == 1:
        return CausalConv3d(into, out, stride, spatial)
    return nn.Sequential(CausalConv3d(into, out, stride, spatial, frames=1), nn.GELU(), CausalConv3d(out, out, 1, 1))


class ResidualUnit(nn.Module):
    """The basic block of ResNet-18 in 3-D, pre-norm: two convolutions and a skip (strided and linear where the shape
    changes)."""

    def __init__(self, into: int, out: int, stride: int, spatial: int, factored: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(into), convolution(into, out, stride, spatial, factored)
        self.norm2, self.conv2 = FrameNorm(out), convolution(out, out, 1, spatial, factored)
        self.stride = stride
        self.skip = nn.Identity() if into == out and stride == 1 else nn.Linear(into, out)

    def forward(self, x: Float[Tensor, "n T H W C"]) -> Float[Tensor, "n T R S E"]:
        y = self.conv1(F.gelu(self.norm1(x)))
        return self.skip(x[:, :, :: self.stride, :: self.stride]) + self.conv2(F.gelu(self.norm2(y)))


class ColumnResNet(nn.Module):
    """ResNet-18-3D inside each unit column, temporal resolution kept; channels width·(1, 2, 4, 8).

    A stem (1×3×3) halves the unit, stage 1 halves it again from 16 px on, every later stage halves it until it is one
    pixel; kernels are 3×3×3 (or `factored`), and 3×1×1 where the map is one pixel. A cell's feature is a linear map of
    its own pixels (the tubelet embedding, which alone keeps all motion at random init) plus linear maps of the last map
    that still has a layout (2×2) and of the deepest one (the same map where few stages are asked for), each over the
    cell's τ frames.
    """

    def __init__(
        self,
        dim: int,
        unit: int,
        unit_frames: int,
        width: int,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        factored: bool = False,
    ) -> None:
        super().__init__()
        if unit < 4 or unit & (unit - 1):
            raise ValueError(f"a unit's side is a power of two from 4 on, not {unit}")
        self.unit, self.unit_frames = unit, unit_frames
        self.pixels = nn.Linear(unit_frames * unit * unit * 3, dim)
        self.stem = CausalConv3d(3, width, stride=2, frames=1)
        stages, side, channels = [], unit // 2, width
        self.layout_stage = -1
        for number, depth in enumerate(blocks):
            out = width * 2**number
            stride = 2 if side > 1 and (number > 0 or side > 4) else 1
            side = -(-side // stride)
            spatial = 3 if side > 1 else 1
            first = ResidualUnit(channels, out, stride, spatial, factored)
            more = (ResidualUnit(out, out, 1, spatial, factored) for _ in range(depth - 1))
            stages.append(nn.Sequential(first, *more))
            channels = out
            if side == 2:
                self.layout_stage, layout = number, 4 * out
        if self.layout_stage < 0:
            raise ValueError(f"{len(blocks)} stages leave no 2×2 map of a unit of {unit} px")
        self.stages = nn.ModuleList(stages)
        self.from_layout = nn.Linear(unit_frames * layout, dim)
        self.from_deep = nn.Linear(unit_frames * channels * side * side, dim)

    def forward(self, video: Float[Tensor, "B T H W 3"], hidden: Bool[Tensor, "B N"] | None = None) -> Cells:
        grid = grid_of(video, self.unit, self.unit_frames)
        t, h, w = grid
        index, valid = visible_cells(video, hidden, grid)
        pixels = cut_cells(video, self.unit, self.unit_frames)
        flat = pixels if hidden is None else visible_pixels(pixels, index, valid)
        x = self.pixels(flat)
        columns = pixels.view(video.shape[0], t, h * w, -1).transpose(1, 2).flatten(0, 1)  # (B·h·w, t, P)
        row = None
        if hidden is not None:
            hidden = hidden.to(video.device)
            columns = columns.masked_fill(hidden.view(-1, t, h * w).transpose(1, 2).reshape(-1, t, 1), 0)
            keep = ~hidden.view(-1, t, h * w).all(1).flatten()  # columns with anything visible
            steps = (~hidden).view(-1, t, h * w).any(2).any(0)
            last = int((steps * torch.arange(1, t + 1, device=steps.device)).max().clamp_min(1))
            columns, row = columns[keep, :last], keep.long().cumsum(0) - 1
        deep = self.columns(columns)  # (n, last, dim)
        clip = torch.arange(video.shape[0], device=video.device)[:, None] * (h * w)
        column = clip + index % (h * w)
        column = column if row is None else row[column].clamp_min(0)
        step = (index // (h * w)).clamp_max(deep.shape[1] - 1)
        x = x + deep[column, step]
        return Cells(torch.where(valid[..., None], x, 0), index, valid, grid)

    def columns(self, pixels: Float[Tensor, "n t P"]) -> Float[Tensor, "n t D"]:
        n, t, _ = pixels.shape
        u = self.unit
        x = self.stem(pixels.reshape(n, t * self.unit_frames, u, u, 3))
        layout = None
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == self.layout_stage:
                layout = x
        assert layout is not None
        # frames of a step side by side: (n,T,R,S,E) -> (n, t, τ·R·S·E)
        return self.from_layout(layout.reshape(n, t, -1)) + self.from_deep(x.reshape(n, t, -1))
