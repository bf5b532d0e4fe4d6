"""One opened clip: sparse reads by seeking where its packets can be trusted, true counts by decoding where not."""

import bisect
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from polyspace.data.rgb import RgbConverter
from polyspace.data.video_file import VideoError, open_video, read_index, reason


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
        self._open()
        self._index, self._packets = read_index(self._file, self._stream)
        if self._index is None:
            self._open()  # whoever reads by an index seeks first, and can go on with the file as it is
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
        for frame in itertools.islice(self.frames_from(start), None if stop is None else max(0, stop - start)):
            if size is not None and size != (frame.width, frame.height):
                raise VideoError(self.path, "the frame size changes within the clip")
            size = (frame.width, frame.height)
            yield partial(self._rgb, frame)
        if size is None and not self._count and start == 0:
            raise VideoError(self.path, self.damage or "no frame decodes")

    def _open(self) -> None:
        self.close()
        self._file, self._stream = open_video(self.path, self.threads)
        self._rgb = RgbConverter(self._stream)

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
            self.damage = f"decode error after {count} frames ({reason(error)})"
        self._count = count

    def frames_from(self, start: int) -> Iterator[Any]:
        """PyAV frames from `start` on: by seeking where the packets can be trusted, else by counting."""
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
