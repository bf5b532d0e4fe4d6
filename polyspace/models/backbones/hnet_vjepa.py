"""Our own encoders as a backbone: what main.py pretrained, H-Net V-JEPA or the tubelet baseline."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyspace.models.backbones.base import Backbone, BackboneCard
from polyspace.models.backbones.checkpoints import WeightsUnavailable
from polyspace.models.features import Features
from polyspace.models.vjepa.encoded import Encoded
from polyspace.models.vjepa.saved import find_encoder, load_encoder, make_encoder, read_encoder
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.utils.errors import UserError
from polyspace.utils.flops import forward_flops
from polyspace.utils.log import warn
from polyspace.utils.plan import Plan


class HouseBackbone(Backbone):
    """Tokens are the chunks' latents handed back to the cells, (B,t·h·w,D) on their grid; the clip feature is the mean
    of the chunks themselves. `num_chunks` is the budget of a clip; None: its content decides."""

    def __init__(self, encoder: HNetViT | TubeletViT, num_chunks: int | None = None) -> None:
        super().__init__()
        self.encoder, self.num_chunks = encoder, num_chunks

    def encoded(self, video: Float[Tensor, "B T H W 3"]) -> Encoded:
        """All that the encoder knows of the clips, its own tokens first."""
        if isinstance(self.encoder, HNetViT):
            return self.encoder.encode(video, num_chunks=self.num_chunks)
        return self.encoder.encode(video)

    def forward(self, video: Float[Tensor, "B T H W 3"]) -> Features:
        encoded = self.encoded(video)
        return Features(encoded.on_grid(), encoded.cells.grid, clip=encoded.pooled())


def describe(checkpoint: str | None, revision: str | None, frames: int, num_chunks: int | None = None) -> BackboneCard:
    """The card of an encoder on disk: `checkpoint` is its folder, or that of a run. WeightsUnavailable without one,
    UserError where there is none or it takes in something else."""
    if checkpoint is None:
        raise WeightsUnavailable("hnet_vjepa is pretrained by main.py; give --checkpoint hnet_vjepa=outputs")
    if revision is not None:
        raise UserError(f"--checkpoint hnet_vjepa={checkpoint}@{revision}: a folder has no revisions")
    folder = find_encoder(Path(checkpoint).expanduser())
    if folder is None:
        raise UserError(f"--checkpoint hnet_vjepa={checkpoint}: no encoder.json there or in its pretrain/")
    about = read_encoder(folder)
    if about.get("input") is None:
        raise UserError(f"{folder / 'encoder.json'} does not say what goes into the encoder; pretrain again")
    values, taken = about["encoder"], about["input"]
    with torch.device("meta"):
        shape = make_encoder(values, str(folder / "encoder.json"))
    if num_chunks is not None and not isinstance(shape, HNetViT):
        raise UserError(f"--num_chunks {num_chunks}: the encoder in {folder} has fixed tubelets, no chunks to choose")
    frames = _frames(frames, int(taken["frames"]), shape.unit_frames)
    size, unit = int(taken["size"]), shape.unit
    grid = (frames // shape.unit_frames, size // unit, size // unit)
    tokens = "tubelets" if isinstance(shape, TubeletViT) else "chunks" if num_chunks is None else f"{num_chunks} chunks"

    def load() -> HouseBackbone:
        return HouseBackbone(load_encoder(folder), num_chunks).eval().requires_grad_(False)

    def skeleton() -> nn.Module:
        return HouseBackbone(make_encoder(values), num_chunks)

    return BackboneCard(
        name="hnet_vjepa",
        backend="polyspace",
        checkpoint=str(checkpoint),
        revision="local",
        digest=about["sha256"],
        dim=shape.dim,
        grid=grid,
        pooling=f"mean of {tokens}",
        plan=Plan(frames, size, (size, size), tuple(taken["mean"]), tuple(taken["std"]), source=str(folder)),
        load=load,
        skeleton=skeleton,
        trained=_trained(about.get("data", {})),
        count=lambda batch: _count(skeleton, (batch, frames, size, size, 3)),
        num_chunks=num_chunks,
        files=(folder / "encoder.json", folder / "encoder.safetensors"),
    )


def _frames(asked: int, learned: int, step: int) -> int:
    """Whole steps of cells; other lengths than those learned from are possible and said."""
    if asked % step:
        raise UserError(f"--frames {asked}: hnet_vjepa takes whole steps of {step} frames")
    if asked != learned:
        warn(f"--frames {asked}: hnet_vjepa was pretrained on clips of {learned} frames")
    return asked


def _trained(data: dict[str, object]) -> str:
    on = data.get("dataset", "clips that its file does not name")
    return f"self-supervised on {on}" + (" by us" if on == "generated" else "")


def _count(skeleton: Callable[[], nn.Module], shape: tuple[int, ...]) -> int:
    """FLOPs where every cell changes at every step, so that a clip has the most chunks it can have."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # the counter does not see fused attention on a CPU
        return forward_flops(skeleton().eval(), noise)
