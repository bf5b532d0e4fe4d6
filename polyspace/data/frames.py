"""Where the frames of an episode's camera come from: a video file, a range of one, or encoded images in a record."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from polyspace.data.video import VideoError, probe, read_frames
from polyspace.data.video_file import MAX_PIXELS
from polyspace.utils.errors import UserError
from polyspace.utils.reading import FAULTS


@runtime_checkable
class FrameSource(Protocol):
    """`count()` is the number of frames that really decode, `read` gives them by index in presentation order.

    VideoError(path, reason) where no frame can be read, IndexError for an index outside 0 … count − 1."""

    def count(self) -> int: ...
    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]: ...


@dataclass(frozen=True)
class VideoFrames:
    """Frames `start` … `stop` − 1 of a video file (None: to its end). `fps`, where given, is what the file must play at
    for the range to mean what its author meant."""

    path: Path
    start: int = 0
    stop: int | None = None
    fps: float | None = None

    def count(self) -> int:
        info = probe(self.path)
        if self.fps is not None and (info.variable_fps or abs(info.fps - self.fps) > 0.01 * self.fps):
            kind = "a variable rate" if info.variable_fps else f"{info.fps:g} frames a second"
            raise VideoError(self.path, f"plays at {kind}, its data set says {self.fps:g}")
        stop = info.num_frames if self.stop is None else min(self.stop, info.num_frames)
        return max(0, stop - self.start)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        check_indices(indices, None if self.stop is None else self.stop - self.start, self.path)
        return read_frames(self.path, [self.start + int(i) for i in indices])


@dataclass(frozen=True)
class EncodedFrames:
    """JPEG or PNG images that `load` fetches from `path` when they are wanted; `length` is their number."""

    path: Path
    length: int
    load: Callable[[], Sequence[bytes]]

    def count(self) -> int:
        for data in self.load():
            decode_image(data, self.path)
        return self.length

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        check_indices(indices, self.length, self.path)
        images = self.load()
        frames = {i: decode_image(images[i], self.path) for i in {int(i) for i in indices}}
        if len({frame.shape for frame in frames.values()}) > 1:
            raise VideoError(self.path, "the frame size changes within an episode")
        return torch.stack([frames[int(i)] for i in indices])


@dataclass(frozen=True)
class FrameView:
    """Every `step`-th frame of a source, `length` of them."""

    source: FrameSource
    length: int
    step: int = 1

    def count(self) -> int:
        return self.length

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        check_indices(indices, self.length, "an episode")
        return self.source.read([self.step * int(i) for i in indices])


def check_indices(indices: Sequence[int], count: int | None, where: object) -> None:
    """IndexError for no index, a negative one, or one beyond the last frame."""
    if not len(indices):
        raise IndexError(f"{where}: no frame index given")
    if min(indices) < 0:
        raise IndexError(f"{where}: frame index {min(indices)} is negative")
    if count is not None and max(indices) >= count:
        raise IndexError(f"{where}: frame index {max(indices)} is beyond the last of {count} frames")


def decode_image(data: bytes, where: Path) -> UInt8[Tensor, "H W 3"]:
    """A JPEG or PNG image -> RGB; VideoError names the file it stands in where it is neither, or damaged."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("encoded images need Pillow: pip install 'polyspace[robot]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VideoError(where, f"absurd image size {image.width}x{image.height}")
            rgb = image.convert("RGB")
            return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)
    except UserError:
        raise
    except (*FAULTS, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(where, f"an image in it cannot be decoded ({type(error).__name__})") from error
