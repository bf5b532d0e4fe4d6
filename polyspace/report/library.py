"""Clips, and where they lie in each space: what maps and retrieval strips are drawn from."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE, FRAMES = 56, 8  # of a thumbnail: pixels, and frames that it plays
NEAREST = 5


@dataclass(frozen=True)
class Clip:
    """`label` is the class's number."""

    id: str
    label: int | None
    group: str
    text: str = ""


@dataclass(frozen=True)
class SpaceView:
    """One space: where clips lie in two dims (n,2) and the words of its axes; nearest (n,k) other clips, best first,
    −1 where there are too few; same: share of these of the clip's own class, with its interval; None without labels."""

    name: str
    points: NDArray[np.float32]
    axes: tuple[str, str]
    nearest: NDArray[np.int64]
    same: tuple[float, float, float] | None


@dataclass(frozen=True)
class Library:
    """`sheet`: JPEG of all clips' thumbnails, a row a clip, `FRAMES` of `SIDE` pixels each; None without videos."""

    title: str
    clips: Sequence[Clip]
    classes: Sequence[str]
    spaces: Sequence[SpaceView]
    sheet: bytes | None
    chance: float | None  # that two clips are of one class
    command: str = ""
    stand_ins: Sequence[str] = ()


def thumbnails(videos: Sequence[NDArray[np.uint8] | None]) -> bytes | None:
    """A sheet of frames, from clips of few frames each (T,H,W,3); a clip that is None gets a grey row."""
    from PIL import Image

    if all(video is None for video in videos):
        return None
    sheet = np.full((len(videos) * SIDE, FRAMES * SIDE, 3), 128, np.uint8)
    for row, video in enumerate(videos):
        if video is None:
            continue
        for column, t in enumerate(np.linspace(0, len(video) - 1, FRAMES).round().astype(int)):
            place = (slice(row * SIDE, (row + 1) * SIDE), slice(column * SIDE, (column + 1) * SIDE))
            sheet[place] = video[t] if video.shape[1:3] == (SIDE, SIDE) else square(video[t])
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=72)
    return buffer.getvalue()


def square(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The centre of a frame, `SIDE` pixels."""
    from PIL import Image

    side = min(frame.shape[:2])
    top, left = ((n - side) // 2 for n in frame.shape[:2])
    return np.asarray(Image.fromarray(frame[top : top + side, left : left + side]).resize((SIDE, SIDE)))


def facts(library: Library) -> dict[str, Any]:
    """The numbers behind maps and strips."""
    ids = [clip.id for clip in library.clips]
    spaces = {
        view.name: {"points": np.round(view.points, 4).tolist(), "axes": view.axes, "nearest": view.nearest.tolist()}
        for view in library.spaces
    }
    return {"clips": ids, "labels": [clip.label for clip in library.clips], "classes": library.classes} | spaces
