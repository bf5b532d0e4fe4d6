"""The encoders: a ViT over tubelets (the baseline) and a ViT over chunks of the video's own choice (HNetViT)."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.features import Features
from polyspace.models.hnet.column_resnet import ColumnResNet
from polyspace.models.hnet.downsampler import LearnedAttentionPooling
from polyspace.models.hnet.encoder import TubeletStem, expand_hidden, grid_of
from polyspace.models.hnet.pos_enc import ChunkPosition
from polyspace.models.hnet.pos_enc import Kind as PositionKind
from polyspace.models.hnet.routing import SparseRouting
from polyspace.models.layers import sincos_code
from polyspace.models.vjepa.encoded import Encoded, features_of
from polyspace.models.vjepa.trunk import ViT
from polyspace.utils.errors import did_you_mean

# The conv width is about a twenty-fourth of the ViT's in every preset. When the gate cuts as often as the ratio loss
# wants, a clip of 224² has some 470 (16 frames) to 780 (32) runs; a quarter of them are 120 to 200 chunks.
REAL: dict[str, Any] = dict(unit=16, cell_depth=2, runs_per_chunk=4.0, max_chunks=320)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        dim=96,
        depth=4,
        heads=4,
        conv_width=4,
        unit=8,
        cell_depth=0,
        max_chunks=None,
        groups=2,
        conv_blocks=(1, 1),
    ),
    "small": dict(dim=384, depth=12, heads=6, cell_dim=192, conv_width=16, **REAL),
    "base": dict(dim=768, depth=12, heads=12, cell_dim=256, conv_width=32, **REAL),
    "large": dict(dim=1024, depth=24, heads=16, cell_dim=256, conv_width=44, **REAL),
}


class TubeletViT(nn.Module):
    """The plain V-JEPA encoder: one token a visible cell, fixed positions, the same ViT. Source: V-JEPA 2,
    arXiv 2506.09985, section 2.1 (with sin-cos positions)."""

    def __init__(self, dim: int, depth: int, heads: int, unit: int, unit_frames: int = 2, recompute: bool = False):
        super().__init__()
        self.dim, self.unit, self.unit_frames = dim, unit, unit_frames
        self.stem = TubeletStem(dim, unit, unit_frames)
        self.vit = ViT(dim, depth, heads, recompute=recompute)

    def encode(
        self, video: Float[Tensor, "B T H W 3"], hidden: Bool[Tensor, "B *t h w"] | None = None, *, layers: int = 1
    ) -> Encoded:
        """As `forward`, with all that is known on the way; `layers` as in ViT."""
        cells = self.stem(video, _flat(hidden, video, self.unit, self.unit_frames))
        x = cells.x + sincos_code(cells.coords, self.dim).to(cells.x.dtype)
        tokens = self.vit(x, None if hidden is None else ~cells.valid, layers)
        return Encoded(tokens, cells.valid, cells.coords, cells.valid.to(tokens.dtype), cells)

    def forward(self, video: Float[Tensor, "B T H W 3"], hidden: Bool[Tensor, "B *t h w"] | None = None) -> Features:
        return features_of(self.encode(video, hidden))


class HNetViT(nn.Module):
    """The video encoder that chooses its own tokens: cells → routing → pooled chunks → positions → ViT.

    `forward(video, hidden=None, num_chunks=None, regions=None)`: video (B,T,H,W,3) normalised; hidden bool
    (B,H/u,W/u) for whole columns or (B,T/τ,H/u,W/u), True = not to be seen, u = `unit` pixels, τ = `unit_frames`;
    num_chunks sets a budget (at most so many tokens a clip, and so many where a gate decides and the clip has that
    many cells). Else the content decides: a clip has as many chunks as it has runs (places between two changes), over
    `runs_per_chunk` and up to `max_chunks`. Where these ask for fewer, runs that touch merge with the least loss; with
    `regions`, all that look alike at the same time do. With `size_bias` a token counts in attention as often as it has
    cells (logit + log size: token merging's proportional attention, arXiv 2210.09461, section 3). Nothing that is
    returned depends on hidden pixels.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        unit: int,
        unit_frames: int = 2,
        *,
        cell_dim: int | None = None,
        cell_depth: int = 1,
        conv_width: int = 8,
        conv_blocks: tuple[int, ...] = (2, 2, 2, 2),
        factored: bool = False,
        stem: Literal["resnet", "tubelet"] = "resnet",
        soft: bool = True,
        fixed: tuple[int, int, int] | None = None,
        regions: bool = False,
        overlap: float = 0.0,
        learned_pooling: bool = True,
        learned_selection: bool = False,
        positions: PositionKind = "adaptive",
        size_bias: bool = False,
        max_chunks: int | None = None,
        runs_per_chunk: float = 1.0,
        recompute: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.dim, self.unit, self.unit_frames, self.max_chunks = dim, unit, unit_frames, max_chunks
        self.regions, self.size_bias, self.runs_per_chunk = regions, size_bias, runs_per_chunk
        width = cell_dim or dim
        cell_heads = max(n for n in range(1, max(1, width // 32) + 1) if width % n == 0)
        self.stem: nn.Module = (
            TubeletStem(width, unit, unit_frames)
            if stem == "tubelet"
            else ColumnResNet(width, unit, unit_frames, conv_width, conv_blocks, factored)
        )
        self.routing = SparseRouting(width, cell_heads, cell_depth, soft, fixed, overlap=overlap)
        self.downsampler = LearnedAttentionPooling(width, cell_heads, learned_pooling, select=learned_selection)
        self.widen = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.position = ChunkPosition(dim, positions)
        self.vit = ViT(dim, depth, heads, recompute=recompute, groups=groups)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "HNetViT":
        """`tiny` (8 px units; clips to 16×64×64), `small`, `base`, `large` (16 px units; any size the unit divides)."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
        return cls(**(PRESETS[name] | changes))

    def encode(
        self,
        video: Float[Tensor, "B T H W 3"],
        hidden: Bool[Tensor, "B *t h w"] | None = None,
        num_chunks: int | None = None,
        regions: bool | None = None,
        capped: bool = True,
        layers: int = 1,
        saliency: Float[Tensor, "B t h w"] | None = None,
    ) -> Encoded:
        """As `forward`, with all that is known on the way; `capped` False leaves all runs as they are (neither
        `runs_per_chunk` nor `max_chunks`, but a budget holds); `layers` as in ViT; `saliency` ≥ 0 of the grid's cells
        multiplies their weight in their chunk's token."""
        cells = self.stem(video, _flat(hidden, video, self.unit, self.unit_frames))
        if num_chunks is not None and num_chunks < 1:
            raise ValueError(f"num_chunks must be at least 1, not {num_chunks}")
        most = num_chunks or (self.max_chunks if capped else None)
        selects = self.downsampler.score is not None  # then the learned score decides what is kept, not likeness
        regions = self.regions if regions is None else regions
        routing = self.routing(
            cells,
            num_chunks,
            None if selects else most,
            regions,
            self.runs_per_chunk if capped and not selects else 1.0,
        )
        weight = None if saliency is None else saliency.flatten(1).gather(1, cells.index)
        chunks = self.downsampler(cells, routing, most, weight)
        x = self.widen(chunks.tokens)
        x = x + self.position(chunks.centroids, chunks.sizes).to(x.dtype)
        bias = chunks.sizes.clamp_min(1e-6).log().to(x.dtype) if self.size_bias else None
        tokens = self.vit(torch.where(chunks.valid[..., None], x, 0), ~chunks.valid, layers, bias)
        return Encoded(tokens, chunks.valid, chunks.centroids, chunks.sizes, cells, routing, chunks)

    def forward(
        self,
        video: Float[Tensor, "B T H W 3"],
        hidden: Bool[Tensor, "B *t h w"] | None = None,
        num_chunks: int | None = None,
        regions: bool | None = None,
    ) -> Features:
        return features_of(self.encode(video, hidden, num_chunks, regions))


def _flat(hidden: Bool[Tensor, "B *t h w"] | None, video: Tensor, unit: int, unit_frames: int) -> Tensor | None:
    return None if hidden is None else expand_hidden(hidden, grid_of(video, unit, unit_frames), len(video))
