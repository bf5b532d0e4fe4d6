"""The one batch type of the house."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoBatch:
    """video (B,T,H,W,3) normalised, or cached `features` {space: (B,…)}; label (B,) ids, or (B,K) of 0 and 1 where a
    clip has several; the rest where a phase needs it: text, maps (B,t,h,w) share of salient pixels in each base cell,
    saliency (B,M) the same of each chunk, actions (B,A,7), valid (B,N) True where real. `place` is where in a run the
    batch stands: (update, index of its first clip in the global batch); `rows` are the clips' places from there on
    where some were left out (None: 0, 1, 2 …)."""

    video: Tensor | None = None
    label: Tensor | None = None
    features: Mapping[str, Tensor] | None = None
    text: list[str] | None = None
    maps: Tensor | None = None
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
    """Features in memory as batches, chosen by index, with whatever else there is of each clip."""

    def __init__(
        self,
        features: Mapping[str, Tensor],
        labels: Tensor | None = None,
        *,
        text: Sequence[str] | None = None,
        valid: Tensor | None = None,
        saliency: Tensor | None = None,
    ) -> None:
        self.features, self.labels, self.text = dict(features), labels, text
        self.valid, self.saliency = valid, saliency

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def batch(self, indices: Tensor) -> VideoBatch:
        return VideoBatch(
            label=None if self.labels is None else self.labels[indices],
            features={k: v[indices] for k, v in self.features.items()},
            text=None if self.text is None else [self.text[i] for i in indices.tolist()],
            valid=None if self.valid is None else self.valid[indices],
            saliency=None if self.saliency is None else self.saliency[indices],
        )
