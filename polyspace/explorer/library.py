"""The clips that the page knows: those to pick from, and those that ids of stores and indexes mean."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyspace.data.records import VIDEO_ENDINGS
from polyspace.data.video import VideoError, VideoReader
from polyspace.utils.errors import UserError

Picture = NDArray[np.uint8]
OFFERED = 2000  # clips in the list to pick from; more would make the page slow
KEPT = 512  # thumbnails in memory


def is_video(path: Path) -> bool:
    """Whether the file's ending is a video's; what it holds shows when it is decoded."""
    return path.suffix.lower() in VIDEO_ENDINGS


class Library:
    """`clips`: name -> file of what can be picked: the folder's videos, else those ids of stores that are files.

    An id means a file if it is the path of a video, or if one video of the folder alone has its name or its place.
    """

    def __init__(self, folder: Path | None, ids: Iterable[str] = ()) -> None:
        found: list[Path] = []
        if folder is not None:
            if not folder.is_dir():
                raise UserError(f"--clips {folder} is not a folder")
            found = sorted(p for p in folder.rglob("*") if is_video(p) and p.is_file())
            if not found:
                raise UserError(f"--clips {folder} holds no videos ({', '.join(VIDEO_ENDINGS)})")
        self._known: dict[str, Path | None] = {}
        for path in found:
            assert folder is not None
            place = path.relative_to(folder)
            self._add(place.with_suffix("").as_posix(), path)
            if len(place.parts) > 1:
                self._add(place.stem, path)
        if folder is not None:
            named = ((p.relative_to(folder).as_posix(), p) for p in found)
        else:
            named = ((i, p) for i in dict.fromkeys(ids) if (p := self.find(i)) is not None)
        self.clips = dict(pair for pair, _ in zip(named, range(OFFERED), strict=False))

    def _add(self, name: str, path: Path) -> None:
        self._known[name] = None if name in self._known else path  # None: several have it

    def find(self, name: str) -> Path | None:
        """The file that an id means, or None."""
        path = Path(name)
        if is_video(path) and path.is_file():
            return path
        plain = path.with_suffix("") if is_video(path) else path
        found = self._known.get(plain.as_posix()) or self._known.get(plain.name)
        if found is None or not f"/{found.with_suffix('').as_posix()}".endswith(f"/{plain.as_posix()}"):
            return None  # another folder's clip of the same name
        return found

    def pictures(self, name: str, count: int = 3, side: int = 96) -> list[Picture]:
        """`count` frames over the clip, at most `side` pixels a side; none where there is no file or it can't be
        read."""
        path = self.find(name)
        if path is None:
            return []
        try:
            return _pictures(path, path.stat().st_mtime_ns, count, side)
        except (VideoError, OSError):
            return []


@lru_cache(maxsize=KEPT)
def _pictures(path: Path, changed: int, count: int, side: int) -> list[Picture]:
    with VideoReader(path) as video:
        frames = video.sample(lambda n: [int((i + 0.5) * n / count) for i in range(count)])[1].numpy()
    return [shrink(frame, side) for frame in frames]


def shrink(frame: Picture, side: int) -> Picture:
    """`frame` with its longer side at `side` pixels: averaged where it is larger, pixels repeated where smaller."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(frame).resize(size, way))
