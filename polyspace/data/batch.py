"""The one batch type of the house."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoBatch:
    """video (B,T,H,W,3) normalised, or cached `features` {space: (B,D)}; label (B,) ids; the rest where a phase needs
    it: text, saliency (B,M), actions (B,A,7), valid (B,N) True where real. `place` is where in a run the batch stands:
    (update, index of its first clip in the global batch); `rows` are the clips' places from there on where some were
    left out (None: 0, 1, 2 …)."""

    video: Tensor | None = None
    label: Tensor | None = None
    features: Mapping[str, Tensor] | None = None
    text: list[str] | None = None
    saliency: Tensor | None = None
    actions: Tensor | None = None
    valid: Tensor | None = None
    place: tuple[int, int] = (0, 0)
    rows: tuple[int, ...] | None = None

    @property
    def indices(self) -> list[int]:
        """Each clip's index in the global batch of its update."""
        rows = range(len(self)) if self.rows is None else self.rows
        return [self.place[1] + row for row in rows]

    def __len__(self) -> int:
        for value in (self.video, self.label):
            if value is not None:
                return len(value)
        return len(next(iter((self.features or {}).values()), ()))

    def to(self, device: torch.device) -> "VideoBatch":
        """Every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return (
                {k: v.to(device, non_blocking=True) for k, v in value.items()} if isinstance(value, Mapping) else value
            )

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


class CachedFeatures:
    """Features and labels in memory as batches, chosen by index."""

    def __init__(self, features: Mapping[str, Tensor], labels: Tensor) -> None:
        self.features, self.labels = dict(features), labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> VideoBatch:
        return VideoBatch(label=self.labels[indices], features={k: v[indices] for k, v in self.features.items()})
