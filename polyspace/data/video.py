"""A path becomes frames: exact, in presentation order, upright, from the best video stream; or a VideoError.

Frames are bit-equal to what the ffmpeg command line writes as rgb24. Counts are of frames that really decode, never
the header's. Sparse reads of a well-indexed file seek to the key frames before the wanted ones; a file whose packets
can't be trusted (packed B-frames, missing or repeated timestamps, damage) is decoded from its start instead, up to
its first decode error.
"""

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from polyspace.utils.errors import UserError

MAX_PIXELS = 8192 * 8192  # a declared frame beyond this is refused before anything is allocated for it
_WITHOUT_TIMES = {"avi"}  # containers that store no presentation times: those of B-frames are guessed


class VideoError(UserError):
    """A clip can't be read; `.path` and `.reason` say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.path, self.reason)


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


@dataclass(frozen=True)
class _Index:
    """Presentation times of all packets, sorted, and those that are key frames; None where they can't be trusted."""

    pts: list[int]
    keys: list[int]


class VideoReader:
    """One opened clip. `num_frames` is the trusted packet count until a decode proves otherwise.

    >>> with VideoReader("clip.mp4") as video: frames = video.read([0, 5, 9])  # uint8 (3,H,W,3)
    `decoded` counts the frames that the decoder gave so far (what a test of "decoded once" reads).
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path, self.threads, self.decoded, self.damage = str(path), threads, 0, None
        self._file: Any = None
        self._packets = 0
        self._open()
        self._index = self._read_index()
        self._count: int | None = len(self._index.pts) if self._index else None

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def num_frames(self) -> int:
        """Frames that can be read; decodes the clip once where its packets can't be trusted."""
        if self._count is None:
            for _ in self._frames():
                pass
            self._open()
        assert self._count is not None
        return self._count

    @property
    def fps(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        return float(rate) if rate else 0.0

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Frames by index, repeats and any order allowed; only the wanted ones are converted to RGB."""
        indices = [int(i) for i in indices]
        if not indices:
            raise IndexError(f"{self.path}: no frame index given")
        if min(indices) < 0:
            raise IndexError(f"{self.path}: frame index {min(indices)} is negative")
        if self._count is not None and max(indices) >= self._count:
            raise IndexError(f"{self.path}: frame index {max(indices)} is beyond the last of {self._count} frames")
        wanted = sorted(set(indices))
        found = self._read_indexed(wanted) if self._index else None
        if found is None:
            found = self._read_from_start(wanted)
        if wanted[-1] not in found:
            if not self._count:
                raise VideoError(self.path, self.damage or "no frame decodes")
            raise IndexError(f"{self.path}: frame index {wanted[-1]} is beyond the last of {self._count} frames")
        sizes = {frame.shape for frame in found.values()}
        if len(sizes) > 1:
            raise VideoError(self.path, f"the frame size changes within the clip ({len(sizes)} sizes)")
        return torch.from_numpy(np.stack([found[i] for i in indices]))

    def sample(self, choose: Callable[[int], Sequence[int]]) -> tuple[list[int], UInt8[Tensor, "n H W 3"]]:
        """Frames at `choose(num_frames)` with a single decode, even where only decoding tells the count.

        An untrusted clip of P packets gives P frames or a few fewer (packed B-frames): the frames that any of these
        counts would ask for are held, undecided, until the last one is in. Returns the indices and their frames.
        """
        if self._count is None:
            guesses = [n for n in range(self._packets, self._packets - 3, -1) if n > 0]
            held = {i: None for n in guesses for i in choose(n)}
            for position, frame in enumerate(self._frames()):
                if position in held:
                    held[position] = frame
            self._open()
            if self._count in guesses:
                indices = list(choose(self._count))
                rgb = {i: self._rgb(held[i]) for i in set(indices)}
                return indices, torch.from_numpy(np.stack([rgb[i] for i in indices]))
        if not self._count:
            raise VideoError(self.path, self.damage or "no frame decodes")
        indices = list(choose(self._count))
        before = self._count
        try:
            frames = self.read(indices)
        except IndexError:
            frames = None
        if self._count != before or frames is None:  # the file broke its index: the true count asks for other frames
            return self.sample(choose)
        return indices, frames

    # -- opening and indexing ------------------------------------------------------------------------------------

    def _open(self) -> None:
        import av

        self.close()
        if not Path(self.path).is_file():
            raise VideoError(self.path, "no such file")
        try:
            self._file = av.open(self.path, metadata_errors="replace")
            stream = self._file.streams.best("video")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.path, f"cannot be opened ({_reason(error)})") from error
        if stream is None:
            raise VideoError(self.path, "no video stream")
        if stream.codec_context is None:
            raise VideoError(self.path, "no decoder for its video codec")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise VideoError(self.path, f"absurd frame size {width}x{height}")
        stream.thread_count = self.threads
        stream.thread_type = "AUTO" if self.threads != 1 else "NONE"
        self._stream = stream
        self._rgb = _RgbConverter(stream)

    def _read_index(self) -> _Index | None:
        import av

        pts, keys, sound = [], [], True
        try:
            for packet in self._file.demux(self._stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                self._packets += 1
                if packet.pts is None or packet.is_corrupt:
                    sound = False
                    continue
                pts.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except av.FFmpegError:
            sound = False
        container = set(self._file.format.name.split(","))
        self._open()
        if not sound or not keys or len(set(pts)) != len(pts) or container & _WITHOUT_TIMES:
            return None
        return _Index(sorted(pts), sorted(keys))

    # -- decoding ------------------------------------------------------------------------------------------------

    def _frames(self) -> Iterator[Any]:
        """Decoded frames from the start; on exhaustion or damage the true count is known."""
        import av

        count = 0
        try:
            for frame in self._file.decode(self._stream):
                count += 1
                self.decoded += 1
                yield frame
        except (av.FFmpegError, ValueError, MemoryError) as error:
            self.damage = f"decode error after {count} frames ({_reason(error)})"
        self._count = count

    def _read_from_start(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Frames by counting from the first; needs no timestamps."""
        self._open()
        found: dict[int, np.ndarray] = {}
        targets = set(wanted)
        frames = self._frames()
        for position, frame in enumerate(frames):
            if position in targets:
                found[position] = self._rgb(frame)
                if position == wanted[-1]:
                    break
        frames.close()
        return found

    def _read_indexed(self, wanted: list[int]) -> dict[int, np.ndarray] | None:
        """Frames by timestamp, seeking over groups without a wanted one; None when the file breaks its index."""
        import av

        assert self._index is not None
        pts, keys = self._index.pts, self._index.keys
        found: dict[int, np.ndarray] = {}
        place = {pts[i]: i for i in wanted}
        remaining = list(wanted)
        while remaining:
            start = bisect.bisect_right(keys, pts[remaining[0]]) - 1
            if start < 0:
                return None
            try:
                self._file.seek(keys[start], stream=self._stream, backward=True, any_frame=False)
                last = None
                for frame in self._file.decode(self._stream):
                    self.decoded += 1
                    if frame.pts is None or (last is not None and frame.pts <= last):
                        return self._distrust()
                    last = frame.pts
                    if last > pts[remaining[0]]:
                        return self._distrust()
                    if last in place:
                        found[place[last]] = self._rgb(frame)
                        remaining.pop(0)
                        # go on decoding unless the next wanted frame lies behind a later key frame
                        if not remaining or bisect.bisect_right(keys, pts[remaining[0]]) - 1 > start + 1:
                            break
                        start = bisect.bisect_right(keys, pts[remaining[0]]) - 1
                else:
                    return self._distrust()
            except (av.FFmpegError, ValueError):
                return self._distrust()
        self._file.seek(0, stream=self._stream, backward=True)
        return found

    def _distrust(self) -> None:
        """The packets promised what the decoder did not keep: count by decoding from now on."""
        self._index, self._count = None, None
        self._open()
        for _ in self._frames():
            pass
        self._open()


class _RgbConverter:
    """Frame -> upright uint8 (H,W,3), bit-equal to the ffmpeg command line.

    Eight-bit formats go through swscale directly; deeper ones through a scale filter with its default flags, since
    the direct path places chroma differently there (up to 21 levels off on a test pattern).
    """

    def __init__(self, stream: Any) -> None:
        from av.video.reformatter import VideoReformatter

        self._stream, self._reformatter, self._graph, self._size = stream, VideoReformatter(), None, None

    def __call__(self, frame: Any) -> np.ndarray:
        if max(c.bits for c in frame.format.components) > 8:
            rgb = self._through_filter(frame)
        else:
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round((frame.rotation or 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def _through_filter(self, frame: Any) -> np.ndarray:
        from av.filter import Graph

        shape = (frame.width, frame.height, frame.format.name)
        if self._graph is None or self._size != shape:
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
            )
            graph.link_nodes(source, graph.add("scale", ""), graph.add("format", "rgb24"), graph.add("buffersink"))
            graph.configure()
            self._graph, self._size = graph, shape
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.split(":")[0].strip()


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
        for frame in video._frames():
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
