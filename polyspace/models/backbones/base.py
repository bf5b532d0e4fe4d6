"""The form that every backbone takes, and the card that describes one before its weights are loaded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.features import Features
from polyspace.utils.flops import forward_flops
from polyspace.utils.plan import Plan


class Backbone(nn.Module):
    """video (B,T,H,W,3), normalised by its own plan -> Features; frozen, in eval mode."""

    def forward(self, video: Float[Tensor, "B T H W 3"]) -> Features:
        raise NotImplementedError


@dataclass(frozen=True)
class Classifier:
    """The classification head of a checkpoint: linear, from the clip feature to scores of `names`."""

    linear: nn.Linear
    names: list[str]


@dataclass(frozen=True)
class BackboneCard:
    """What is known of a backbone without its weights.

    `backend` is "transformers", "polyspace" (pretrained by us) or "identity" (a stand-in: it is announced wherever its
    features go); `digest` identifies the weights' bytes; `pooling` says what the clip feature is; `trained` what the
    weights learned from; `classifier` loads the checkpoint's own head where it has one that reads the clip feature;
    `count` counts the FLOPs of a batch where they depend on the clip's content and the meta device can't tell;
    `num_chunks` is the budget of tokens where one was asked for; `files` are the weights and their configuration.
    """

    name: str
    backend: str
    checkpoint: str
    revision: str
    digest: str
    dim: int
    grid: tuple[int, int, int]
    pooling: str
    plan: Plan
    load: Callable[[], Backbone] = field(compare=False, repr=False)
    skeleton: Callable[[], nn.Module] = field(compare=False, repr=False)
    trained: str = ""
    why: str = ""
    classifier: Callable[[], Classifier | None] = field(default=lambda: None, compare=False, repr=False)
    count: Callable[[int], int] | None = field(default=None, compare=False, repr=False)
    num_chunks: int | None = None
    files: tuple[Path, ...] = field(default=(), compare=False, repr=False)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(T,H,W,3) of one clip."""
        return (self.plan.frames, *self.plan.crop, 3)

    def identity(self) -> dict[str, Any]:
        """What a feature depends on, for fingerprints: the weights by their bytes, not by where they lie."""
        return {
            "backend": self.backend,
            "digest": self.digest,
            "dim": self.dim,
            "grid": list(self.grid),
            "pooling": self.pooling,
            "plan": {k: v for k, v in self.plan.as_dict().items() if k != "source"},
        } | ({} if self.num_chunks is None else {"num_chunks": self.num_chunks})

    def about(self) -> dict[str, Any]:
        """What a manifest says of the space."""
        return {"checkpoint": self.checkpoint, "revision": self.revision, "trained": self.trained} | self.identity()

    def flops(self, batch: int = 1) -> int:
        """Floating point operations of one forward, 2 a multiply-add, attention included; no weights are needed."""
        if self.count is not None:
            return self.count(batch)
        with torch.device("meta"):
            model = self.skeleton().eval()
            video = torch.empty(batch, *self.input_shape)
        return forward_flops(model, video)

    def params(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in self.skeleton().parameters())
