"""Generated clips in memory, drawn many at a time: objects that cross a textured ground, for training in minutes.

The frame is a torus along its rows. A clip of class v moves every object by v/P of the frame width a frame, P a prime
not below the number of frames: whatever its class, an object visits the same P places (one may be left out), in another
order. The set of frames tells nothing about the class; only their order does.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polyspace.data.render import SHAPES, prime_at_least, turns_of_class


@dataclass(frozen=True)
class MovingClips:
    """video uint8 (N,T,S,S,3), label (N,), mask uint8 (N,T,S,S) (0 ground, 1 … objects; None if not kept),
    objects (N,); of each object (N,O) its shape (a number into SHAPES), colour (N,O,3) in 0..1, and height in the
    frame, −1 top to 1 bottom; a clip shows its first `objects`."""

    video: Tensor
    label: Tensor
    mask: Tensor | None
    objects: Tensor
    shape: Tensor
    colour: Tensor
    height: Tensor

    def __len__(self) -> int:
        return len(self.label)


def moving_clips(
    num: int,
    seed: int,
    *,
    frames: int = 12,
    size: int = 48,
    classes: int = 6,
    objects: tuple[int, int] = (1, 2),
    noise: float = 0.03,
    keep_mask: bool = False,
    block: int = 250,
) -> MovingClips:
    """`num` clips, the same for the same arguments, with `objects` (least, most) objects each. Classes 0, 1, 2, 3 … are
    the speeds +1, −1, +2, −2 … (`turns_of_class`)."""
    if (classes + 1) // 2 > (prime_at_least(frames) - 1) // 2:
        raise ValueError(f"{classes} classes need clips of more than {frames} frames")
    parts = []
    for start in range(0, num, block):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        parts.append(_draw(min(block, num - start), generator, frames, size, classes, objects, noise))
    video, label, mask, count, shape, colour, height = (torch.cat(column) for column in zip(*parts, strict=True))
    return MovingClips(video, label, mask if keep_mask else None, count, shape, colour, height)


def _draw(
    n: int, g: torch.Generator, frames: int, size: int, classes: int, objects: tuple[int, int], noise: float
) -> tuple[Tensor, ...]:
    """The fields of MovingClips, in order."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    label = torch.randint(0, classes, (n,), generator=g)
    speed = torch.tensor([turns_of_class(k) for k in range(classes)])[label][:, None]
    count = torch.randint(objects[0], objects[1] + 1, (n,), generator=g)
    period = prime_at_least(frames)
    step = speed * torch.arange(frames) % period / period  # (n,T), in frame widths
    axis = (torch.arange(size) + 0.5) / (size / 2) - 1
    coarse = F.interpolate(uniform(n, 3, 4, 4), size=(size, size), mode="bicubic").clamp(0, 1)
    ground = coarse * 0.25 + 0.35 * uniform(n, 3, 1, 1)
    video = ground[:, None].repeat(1, frames, 1, 1, 1)
    mask = torch.zeros(n, frames, size, size, dtype=torch.uint8)
    shapes = torch.zeros(n, objects[1], dtype=torch.long)
    colours, heights = torch.zeros(n, objects[1], 3), torch.zeros(n, objects[1])
    for number in range(objects[1]):
        x = (2 * uniform(n, 1) + 2 * step) % 2 - 1
        y = (uniform(n, 1) - 0.5) * 1.5
        radius = (0.24 + 0.1 * uniform(n, 1))[..., None, None]
        across = ((axis - x[..., None, None] + 1) % 2 - 1) / radius  # (n,T,1,S), wraps
        down = (axis[:, None] - y[..., None, None]) / radius  # (n,1,S,1)
        shape = torch.randint(0, len(SHAPES), (n,), generator=g)
        inside = _inside(across, down, shape)
        alpha = (inside * radius * (size / 2) + 0.5).clamp(0, 1) * (count > number)[:, None, None, None]
        colour = uniform(n, 3) * 0.7 + 0.3
        video = video * (1 - alpha[:, :, None]) + colour[:, None, :, None, None] * alpha[:, :, None]
        shapes[:, number], colours[:, number], heights[:, number] = shape, colour, y[:, 0]
        mask = torch.where(alpha > 0.5, number + 1, mask)
    video = video + noise * torch.randn(video.shape, generator=g)
    pixels = (video.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    return pixels, label, mask, count, shapes, colours, heights


def _inside(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """How far inside the unit shape (disc, square, triangle, ring) a point lies, negative outside."""
    far = torch.sqrt(x**2 + y**2)
    square = 0.85 - torch.maximum(x.abs(), y.abs())
    triangle = torch.minimum(0.55 - y, 0.5 * (y + 1.1) - math.sqrt(0.75) * x.abs())
    ring = 0.28 - (far - 0.72).abs()
    options = torch.stack([1 - far, square, triangle, ring])
    return options[shape, torch.arange(len(shape))]


def motion_of(video: Tensor) -> Tensor:
    """Mean absolute change between neighbouring frames, uint8 (N,T,S,S,3) -> (N,) in 0..255: what a clip moves."""
    return torch.stack([clip.float().diff(dim=0).abs().mean() for clip in video])


def normalise(video: Tensor, mean: float = 0.45, std: float = 0.25) -> Tensor:
    """uint8 -> float32, zero mean and unit variance for these clips, roughly."""
    return (video.float() / 255 - mean) / std
