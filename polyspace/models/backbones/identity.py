"""A stand-in for a backbone whose weights can't be had: fixed random features of block colours and their changes.

It keeps the pipeline runnable and is announced wherever its features go. Seeded by the name it stands in for, so two
stand-ins give two spaces; it has learned nothing, and no number made with it says anything about a model.
"""

import math
import zlib

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.backbones.base import Backbone, BackboneCard
from polyspace.models.backbones.plans import IMAGENET
from polyspace.models.features import Features
from polyspace.utils.errors import UserError
from polyspace.utils.plan import Plan

DIMS = {"vjepa2": 1024}  # the width of the default checkpoint it stands in for; 768 for the others
FRAMES = {"videomae": 16, "timesformer": 8, "vivit": 32}
SIDE, CELLS, TUBELET = 64, 4, 2


class IdentityBackbone(Backbone):
    """Mean colour and mean change of 2×16×16 blocks -> GELU of a fixed random matrix -> tokens (B, T/2·4·4, D)."""

    def __init__(self, name: str, frames: int, dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        self.grid = (frames // TUBELET, CELLS, CELLS)
        self.mix = nn.Linear(6, dim)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(dim, 6, generator=generator))
            self.mix.bias.copy_(torch.rand(dim, generator=generator) * 2 * math.pi)

    def forward(self, video: Float[Tensor, "B T H W 3"]) -> Features:
        t, h, w = self.grid
        b, frames, height, width, _ = video.shape
        blocks = video.reshape(b, frames, h, height // h, w, width // w, 3).mean((3, 5)).flatten(2, 3)
        pairs = blocks.unflatten(1, (t, TUBELET))  # (B,T,hw,3) -> (B,t,2,hw,3)
        local = torch.cat([pairs.mean(2), 4 * (pairs[:, :, 1] - pairs[:, :, 0])], -1)
        return Features(torch.cos(self.mix(local)).flatten(1, 2), self.grid)


def describe(name: str, frames: int, why: str = "") -> BackboneCard:
    """The card of the stand-in for `name`; `why` says what was missing."""
    frames = FRAMES.get(name, frames)
    if frames % TUBELET:
        raise UserError(f"--frames {frames}: {name} takes an even number of frames")
    dim = DIMS.get(name, 768)

    def load() -> IdentityBackbone:
        return IdentityBackbone(name, frames, dim).eval().requires_grad_(False)

    def skeleton() -> nn.Module:
        model = IdentityBackbone.__new__(IdentityBackbone)
        Backbone.__init__(model)
        model.grid, model.mix = (frames // TUBELET, CELLS, CELLS), nn.Linear(6, dim)
        return model

    return BackboneCard(
        name=name,
        backend="identity",
        checkpoint="identity",
        revision="1",
        digest=f"identity-{name}-{dim}",
        dim=dim,
        grid=(frames // TUBELET, CELLS, CELLS),
        pooling="mean",
        plan=Plan(frames, SIDE, (SIDE, SIDE), *IMAGENET, source="identity stand-in"),
        load=load,
        skeleton=skeleton,
        trained="nothing (stand-in)",
        why=why,
    )
