"""An encoder's tokens for heads: kept in memory while it is frozen, made anew in each step where part of it learns."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyspace.data.batch import CachedFeatures, VideoBatch
from polyspace.models.vjepa.encoded import Encoded
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.downstream.common import Unfreeze
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress
from polyspace.utils.misc import wide

BLOCK = 32  # clips that are encoded at a time: part of what the bits depend on


@dataclass(frozen=True)
class Tokens:
    """tokens (B,M,D), valid (B,M), saliency (B,M) or None, and what the encoder said where it was asked now."""

    tokens: Tensor
    valid: Tensor
    saliency: Tensor | None
    encoded: Encoded | None = None


class TokenReader(nn.Module):
    """Batch -> tokens: those it carries, or the encoder's. `unfreeze`: nothing of the encoder learns, or its routing
    and pooling, or all of it."""

    def __init__(self, encoder: HNetViT | TubeletViT | None, unfreeze: Unfreeze = "none") -> None:
        super().__init__()
        self.encoder, self.unfreeze = encoder, unfreeze
        if encoder is None:
            return
        encoder.requires_grad_(unfreeze == "all")
        if unfreeze == "routing":
            if isinstance(encoder, TubeletViT):
                raise UserError("unfreeze routing has no meaning for arch tubelet")
            encoder.routing.requires_grad_(True)
            encoder.downsampler.requires_grad_(True)

    def train(self, mode: bool = True) -> "TokenReader":
        """A frozen encoder stays in eval mode."""
        super().train(mode)
        if self.encoder is not None and self.unfreeze == "none":
            self.encoder.eval()
        return self

    def forward(self, batch: VideoBatch) -> Tokens:
        if batch.features is not None and "tokens" in batch.features:
            assert batch.valid is not None
            return Tokens(wide(batch.features["tokens"]), batch.valid, batch.saliency)
        assert self.encoder is not None and batch.video is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.unfreeze != "none"):
            encoded = self.encoder.encode(batch.video)
        saliency = batch.saliency
        if saliency is None and batch.maps is not None:
            saliency = encoded.pool_map(batch.maps)
        return Tokens(encoded.tokens, encoded.valid, saliency, encoded)


@torch.no_grad()
def encode_source(
    encoder: HNetViT | TubeletViT, source: Any, device: torch.device, name: str, limit_gib: float
) -> CachedFeatures | None:
    """Tokens of every readable clip with its label, caption and saliency; None where they would need more memory."""
    encoder = encoder.to(device).eval()
    reader, blocks = TokenReader(encoder), torch.arange(len(source)).split(BLOCK)
    made: list[Tokens] = []
    kept: list[VideoBatch] = []
    with Progress(len(source), f"{name}: tokens", "clip") as bar:
        for number, rows in enumerate(blocks):
            if number + 1 < len(blocks):
                source.prefetch(blocks[number + 1])
            batch = source.batch(rows)
            bar.step(len(rows))
            if batch is None:
                continue
            seen = reader(batch.to(device))
            if not made and seen.tokens[0].numel() * 4 * len(source) > limit_gib * 2**30:
                return None
            saliency = None if seen.saliency is None else seen.saliency.cpu()
            made.append(Tokens(seen.tokens.float().cpu(), seen.valid.cpu(), saliency))
            kept.append(batch)
    if not made:
        raise UserError(f"{name}: none of the {len(source)} clips can be read")
    longest = max(t.valid.shape[1] for t in made)

    def padded(parts: list[Tensor], value: Any = 0) -> Tensor:
        tail = [0, 0] * (parts[0].ndim - 2)
        return torch.cat([F.pad(p, (*tail, 0, longest - p.shape[1]), value=value) for p in parts])

    text = [t for b in kept for t in (b.text or [])]
    label = torch.cat([b.label for b in kept if b.label is not None]) if kept[0].label is not None else None
    saliency = None if made[0].saliency is None else padded([t.saliency for t in made if t.saliency is not None])
    return CachedFeatures(
        {"tokens": padded([t.tokens for t in made])},
        label,
        text=text or None,
        valid=padded([t.valid for t in made], False),
        saliency=saliency,
    )


def batches(source: Any, size: int = 64) -> Any:
    """A source's batches in order, without those of which nothing can be read."""
    for rows in torch.arange(len(source)).split(size):
        batch = source.batch(rows)
        if batch is not None:
            yield batch
