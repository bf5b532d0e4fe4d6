"""Frames to a video file, the same bytes for the same frames: one thread, no dates, constant quality."""

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from polyspace.utils.checkpoint_io import atomic_file
from polyspace.utils.errors import UserError

# Constant quantisers: x264's look-ahead (crf, mbtree) gives other bytes from call to call on the same frames.
_CODECS = {
    ".avi": ("avi", "mpeg4", {"flags": "+qscale+bitexact", "global_quality": str(2 * 118)}),
    ".mp4": (
        "mp4",
        "libx264",
        {"preset": "veryfast", "qp": "18", "x264-params": "threads=1:rc-lookahead=0:no-mbtree=1"},
    ),
    ".webm": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}),
}


def ending_of(path: Path) -> str:
    """The ending, which chooses container and codec; UserError for one that can't be written."""
    ending = Path(path).suffix.lower()
    if ending not in _CODECS:
        raise UserError(f"cannot write {ending or 'such'} files ({path}); known: {', '.join(_CODECS)}")
    return ending


def encode_video(frames: Iterable[NDArray[np.uint8]], ending: str, fps: float = 12.0) -> bytes:
    """uint8 frames (H,W,3) -> the bytes of an .avi (MPEG-4), .mp4 (H.264) or .webm (VP9) file."""
    buffer = io.BytesIO()
    _encode(buffer, frames, ending_of(Path(f"video{ending}")), fps)
    return buffer.getvalue()


class _File:
    """What PyAV writes to. A failed write is kept: PyAV may tell it as another error, or to a reader that is open."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _encode(out: Any, frames: Iterable[NDArray[np.uint8]], ending: str, fps: float) -> None:
    import av

    container, codec, options = _CODECS[ending]
    with av.open(out, "w", format=container, options={"fflags": "+bitexact"}) as file:
        stream: Any = None
        for image in frames:
            if stream is None:
                stream = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = options
                stream.thread_count = 1
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        if stream is None:
            raise UserError("cannot write a video without frames")
        file.mux(stream.encode())


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float = 12.0) -> None:
    """Write atomically, frame by frame as they come; the ending chooses container and codec."""
    ending = ending_of(path)
    with atomic_file(path) as file:
        out = _File(file)
        try:
            _encode(out, frames, ending, fps)
        finally:
            if out.error is not None:
                raise out.error
