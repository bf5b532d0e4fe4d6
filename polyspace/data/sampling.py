"""Which frames of a clip a model sees: pure functions from counts to indices."""

from dataclasses import dataclass

import torch

from polyspace.utils.errors import UserError, did_you_mean

KINDS = ("segments", "stride", "fps", "index")


def segment_indices(num_frames: int, frames: int, generator: torch.Generator | None = None) -> list[int]:
    """The middle frame of each of `frames` equal segments (TSN); with a generator, a random frame of each.

    A clip shorter than `frames` repeats frames, in order.
    """
    _check(num_frames, frames)
    jitter = torch.full((frames,), 0.5) if generator is None else torch.rand(frames, generator=generator)
    picks = (torch.arange(frames, dtype=torch.float64) + jitter) * (num_frames / frames)
    return [min(int(p), num_frames - 1) for p in picks]


def stride_indices(
    num_frames: int, frames: int, stride: float, offset: float = 0.5, generator: torch.Generator | None = None
) -> list[int]:
    """Every `stride`-th frame in a window at `offset` (0 first, 0.5 middle, 1 last) or at a random place.

    Indices past the clip's end hold its last frame.
    """
    _check(num_frames, frames)
    if stride <= 0:
        raise ValueError(f"stride must be positive, got {stride}")
    span = (frames - 1) * stride + 1
    room = max(0.0, num_frames - span)
    start = int((offset if generator is None else float(torch.rand((), generator=generator))) * room)
    return [min(start + int(i * stride), num_frames - 1) for i in range(frames)]


def multi_clip_indices(num_frames: int, frames: int, stride: float, clips: int) -> list[list[int]]:
    """`clips` windows spread evenly from the clip's start to its end, for test-time views."""
    if clips == 1:
        return [stride_indices(num_frames, frames, stride)]
    return [stride_indices(num_frames, frames, stride, offset=c / (clips - 1)) for c in range(clips)]


def _check(num_frames: int, frames: int) -> None:
    if num_frames < 1 or frames < 1:
        raise ValueError(f"cannot take {frames} frames from a clip of {num_frames}")


@dataclass(frozen=True)
class Sampling:
    """One word that says how: `segments`, `stride:4`, `fps:8` (needs the clip's rate) or `index:0,3,6`.

    With a `draw`, for training, a random frame of each segment or a random window; the same draw gives the same frames.
    """

    kind: str = "segments"
    value: float = 0.0
    indices: tuple[int, ...] = ()
    draw: int | None = None

    @staticmethod
    def parse(text: str) -> "Sampling":
        kind, _, value = text.partition(":")
        if kind not in KINDS:
            raise UserError(f"--sampling {text}: no such kind{did_you_mean(kind, KINDS)}")
        try:
            if kind == "segments":
                return Sampling()
            if kind == "index":
                indices = tuple(int(v) for v in value.split(","))
                if min(indices) < 0:
                    raise ValueError
                return Sampling("index", indices=indices)
            if float(value) <= 0:
                raise ValueError
            return Sampling(kind, float(value))
        except ValueError as error:
            raise UserError(f"--sampling {text}: expected e.g. stride:4, fps:8 or index:0,3,6") from error

    def __str__(self) -> str:
        if self.kind == "index":
            return "index:" + ",".join(map(str, self.indices))
        return self.kind if self.kind == "segments" else f"{self.kind}:{self.value:g}"

    def pick(self, num_frames: int, frames: int, fps: float, clips: int = 1) -> list[list[int]]:
        """Indices (clips × frames) in a clip of `num_frames` at `fps`."""
        if self.kind == "index":
            if max(self.indices) >= num_frames:
                raise IndexError(f"index {max(self.indices)} is beyond the last of {num_frames} frames")
            return [list(self.indices)]
        generator = None if self.draw is None else torch.Generator().manual_seed(self.draw)
        if self.kind == "segments" and clips == 1:
            return [segment_indices(num_frames, frames, generator)]
        if self.kind == "segments":  # several views: dense windows of half the clip's stride
            return multi_clip_indices(num_frames, frames, max(1.0, num_frames / frames / 2), clips)
        stride = self.value if self.kind == "stride" else max(fps / self.value, 1e-6)
        if generator is not None:
            return [stride_indices(num_frames, frames, stride, generator=generator) for _ in range(clips)]
        return multi_clip_indices(num_frames, frames, stride, clips)
