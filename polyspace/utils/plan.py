"""A backbone's plan: how it wants its pixels. Models state it, data carries it out."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """`resize` is the short side, or (height, width); `crop` the centre window; values are
    (pixel·scale + offset − mean)/std. `source` says where the plan was read."""

    frames: int
    resize: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    offset: float = 0.0
    interpolation: str = "bilinear"
    source: str = "architecture defaults"

    def range(self) -> tuple[float, float]:
        """The interval that the input's values lie in."""
        levels = [v * self.scale + self.offset for v in (0, 255)]
        ends = [(v - m) / s for v in levels for m, s in zip(self.mean, self.std, strict=True)]
        return min(ends), max(ends)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest (lists instead of tuples)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
