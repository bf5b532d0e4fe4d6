"""A path becomes frames: exact, in presentation order, upright, from the best video stream; or a VideoError.

Frames are bit-equal to what the ffmpeg command line writes as rgb24. Counts are of frames that really decode, never
the header's. Sparse reads of a well-indexed file seek to the key frames before the wanted ones; a file whose packets
can't be trusted (packed B-frames, missing or repeated timestamps, damage) is decoded from its start instead, up to
its first decode error.
"""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from polyspace.data.video_file import VideoError
from polyspace.data.video_reader import VideoReader

__all__ = ["VideoError", "VideoInfo", "VideoReader", "probe", "read_frames"]


@dataclass(frozen=True)
class VideoInfo:
    """What can really be decoded: frames counted, size after rotation, of the best video stream.

    `damage` is None, or says where decoding stopped; the frames before it are good.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    codec: str
    pix_fmt: str
    rotation: int
    stream_index: int
    duration: float
    variable_fps: bool
    damage: str | None


def probe(path: str | Path) -> VideoInfo:
    """Decode the clip once and tell what is really there; VideoError when no frame of it can be read."""
    file = Path(path)
    with contextlib.suppress(OSError):
        stat = file.stat()
        return _probe(str(path), stat.st_mtime_ns, stat.st_size)
    raise VideoError(path, "no such file")


@lru_cache(maxsize=512)
def _probe(path: str, mtime_ns: int, size: int) -> VideoInfo:
    with VideoReader(path) as video:
        first, times = None, []
        for frame in video.frames_from(0):
            first = first or frame
            times.append(frame.pts)
        if first is None:
            raise VideoError(path, video.damage or "no frame decodes")
        rotation = round((first.rotation or 0) / 90) % 4 * 90
        height, width = (first.width, first.height) if rotation % 180 else (first.height, first.width)
        known = [t for t in times if t is not None]
        steps = {b - a for a, b in itertools.pairwise(known)}
        spread = max(steps) - min(steps) if steps else 0
        stream = video._stream
        fps = video.fps
        return VideoInfo(
            num_frames=len(times),
            fps=fps,
            height=height,
            width=width,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=stream.codec_context.pix_fmt or "",
            rotation=rotation,
            stream_index=stream.index,
            duration=len(times) / fps if fps else 0.0,
            variable_fps=bool(steps) and min(steps) > 0 and spread > 1 and spread > 0.1 * min(steps),
            damage=video.damage,
        )


def read_frames(path: str | Path, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
    """Frames by index in presentation order.

    Raises IndexError for a negative or too large index, VideoError(path, reason) for a clip that can't be read.
    """
    with VideoReader(path) as video:
        return video.read(indices)
