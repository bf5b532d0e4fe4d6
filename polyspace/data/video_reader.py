"""One opened clip: a packet index where it can be trusted, sparse reads by seeking, true counts by decoding."""

import bisect
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from polyspace.data.rgb import RgbConverter
from polyspace.utils.errors import UserError

MAX_PIXELS = 8192 * 8192  # a declared frame beyond this is refused before anything is allocated for it
# a head may say 16x16 where the frames have more: decoders refuse them too, also while FFmpeg finds out what is there
_LIMITS: list[Any] = [{"max_pixels": str(MAX_PIXELS)}] * 16
_WITHOUT_TIMES = {"avi"}  # containers that store no presentation times: those of B-frames are guessed


class VideoError(UserError):
    """A clip can't be read; `.path` and `.reason` say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True)
class _Index:
    """Presentation times of all packets, sorted, and those that are key frames; None where they can't be trusted."""

    pts: list[int]
    keys: list[int]


class _BrokenIndex(Exception):
    """The decoder did not give what the packets promised."""


class VideoReader:
    """One opened clip. `num_frames` is the trusted packet count until a decode proves otherwise.

    >>> with VideoReader("clip.mp4") as video: frames = video.read([0, 5, 9])  # uint8 (3,H,W,3)
    `decoded` counts the frames that the decoder gave so far (what a test of "decoded once" reads).
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path, self.threads, self.decoded = str(path), threads, 0
        self.damage: str | None = None
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
    def expected(self) -> int:
        """Frames that the packets promise; nothing is decoded for it."""
        return self._packets if self._count is None else self._count

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
        return self._stack(found, indices)

    def _stack(self, found: dict[int, np.ndarray], indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
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
            held: dict[int, Any] = {}
            for n in guesses:
                with contextlib.suppress(IndexError):  # explicit indices may suit one count and not another
                    held |= dict.fromkeys(choose(n))
            for position, frame in enumerate(self._frames()):
                if position in held:
                    held[position] = frame
            self._open()
            if self._count is not None and self._count in guesses:
                indices = list(choose(self._count))
                return indices, self._stack({i: self._rgb(held[i]) for i in set(indices)}, indices)
        if not self._count:
            raise VideoError(self.path, self.damage or "no frame decodes")
        indices = list(choose(self._count))
        before = self._count
        try:
            frames = self.read(indices)
        except IndexError:
            if self._count == before:
                raise
        if self._count != before:  # the file broke its index: the true count asks for other frames
            return self.sample(choose)
        return indices, frames

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[Callable[[], np.ndarray]]:
        """Frames `start` … `stop` − 1 in presentation order, each a call that gives it as RGB: only what is looked at
        is converted, none is kept. Ends where decoding does, and `damage` then says why. VideoError where no frame of
        the clip decodes, or the frame size changes."""
        size = None
        for frame in itertools.islice(self._from(start), None if stop is None else max(0, stop - start)):
            if size is not None and size != (frame.width, frame.height):
                raise VideoError(self.path, "the frame size changes within the clip")
            size = (frame.width, frame.height)
            yield partial(self._rgb, frame)
        if size is None and not self._count and start == 0:
            raise VideoError(self.path, self.damage or "no frame decodes")

    # -- opening and indexing ------------------------------------------------------------------------------------

    def _open(self) -> None:
        import av

        self.close()
        if not Path(self.path).is_file():
            raise VideoError(self.path, "no such file")
        try:
            self._file = av.open(self.path, metadata_errors="replace", stream_options=_LIMITS)
            stream = self._file.streams.best("video")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.path, f"cannot be opened ({_reason(error)})") from error
        if stream is None:
            raise VideoError(self.path, "no video stream")
        if stream.codec_context is None:
            raise VideoError(self.path, "no decoder for its video codec")
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width * height:  # perhaps the limit took it away: what the head alone says, nothing being decoded
            with av.open(self.path, metadata_errors="replace", options={"probesize": "32"}) as file:
                width, height = file.streams[stream.index].width, file.streams[stream.index].height
        if width * height > MAX_PIXELS:
            raise VideoError(self.path, f"absurd frame size {width}x{height}")
        stream.codec_context.options = _LIMITS[0]
        stream.thread_count = self.threads
        stream.thread_type = "AUTO" if self.threads != 1 else "NONE"
        self._stream = stream
        self._rgb = RgbConverter(stream)

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
        if not sound or not keys or len(set(pts)) != len(pts) or container & _WITHOUT_TIMES:
            self._open()
            return None
        return _Index(sorted(pts), sorted(keys))  # whoever reads by it seeks first: the file stays open

    # -- decoding ------------------------------------------------------------------------------------------------

    def _frames(self, count: int = 0) -> Generator[Any, None, None]:
        """Decoded frames from where the file stands, `count` of them gone by; on exhaustion or damage the true count is
        known."""
        import av

        try:
            for frame in self._file.decode(self._stream):
                count += 1
                self.decoded += 1
                yield frame
        except (av.FFmpegError, ValueError, MemoryError) as error:
            self.damage = f"decode error after {count} frames ({_reason(error)})"
        self._count = count

    def _from(self, start: int) -> Iterator[Any]:
        """Decoded frames from `start` on: by seeking where the packets can be trusted, else by counting."""
        self._open()
        if start and self._index and start < len(self._index.pts):
            pts, keys = self._index.pts, self._index.keys
            wanted = pts[start]
            key = keys[max(0, bisect.bisect_right(keys, wanted) - 1)]
            self._file.seek(key, stream=self._stream, backward=True, any_frame=False)
            frames = self._frames(bisect.bisect_left(pts, key))
            found = next((f for f in frames if f.pts is None or f.pts >= wanted), None)
            if found is not None and found.pts == wanted:
                yield found
                yield from frames
                return
            self._index, self._count, self.damage = None, None, None
            self._open()
        yield from itertools.islice(self._frames(), start, None)

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

        found: dict[int, np.ndarray] = {}
        remaining = list(wanted)
        try:
            while remaining:
                self._read_groups(remaining, found)
            self._file.seek(0, stream=self._stream, backward=True)
        except (av.FFmpegError, ValueError, _BrokenIndex):
            self._distrust()
            return None
        return found

    def _read_groups(self, remaining: list[int], found: dict[int, np.ndarray]) -> None:
        """Seek to the key frame before the first remaining index and decode on while wanted frames follow closely."""
        assert self._index is not None
        pts, keys = self._index.pts, self._index.keys

        def group_of(index: int) -> int:
            return bisect.bisect_right(keys, pts[index]) - 1

        group = group_of(remaining[0])
        if group < 0:
            raise _BrokenIndex
        self._file.seek(keys[group], stream=self._stream, backward=True, any_frame=False)
        last = None
        for frame in self._file.decode(self._stream):
            self.decoded += 1
            if frame.pts is None or (last is not None and frame.pts <= last) or frame.pts > pts[remaining[0]]:
                raise _BrokenIndex
            last = frame.pts
            if last == pts[remaining[0]]:
                found[remaining.pop(0)] = self._rgb(frame)
                if not remaining or group_of(remaining[0]) > group + 1:
                    return  # nothing more, or the next one lies behind a later key frame
                group = group_of(remaining[0])
        raise _BrokenIndex

    def _distrust(self) -> None:
        """The packets promised what the decoder did not keep: count by decoding, now and from now on."""
        self._index, self._count = None, None
        self._open()
        for _ in self._frames():
            pass
        self._open()


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.split(":")[0].strip()
