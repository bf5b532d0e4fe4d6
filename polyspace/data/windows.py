"""A long clip as consecutive windows of what a backbone takes in, in flat memory."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.data.sampling import Sampling, segment_indices
from polyspace.data.transforms import prepare
from polyspace.data.video_reader import VideoReader
from polyspace.utils.plan import Plan

SECONDS = 4.0  # of a window where whole clips were learned from: SSv2's clips are that long on average


@dataclass(frozen=True)
class Window:
    """Frames `start` … `stop` − 1 of what is shown, and what a backbone takes in of them."""

    start: int
    stop: int
    clip: Float[Tensor, "T h w 3"]


def window_span(sampling: Sampling, taken: int, frames: int, fps: float) -> int:
    """Frames that a window covers, of a clip of `frames` of which a backbone takes `taken` at a time.

    Where its training fixed a rate (`stride`, `fps`), the window that has this rate. Where it saw whole clips
    (`segments`), the whole clip too, or if that is longer than SECONDS, equal parts of it that are not; but no frame is
    taken twice while there are others.
    """
    if sampling.kind == "stride":
        return max(1, round(taken * sampling.value))
    if sampling.kind == "fps":
        return max(1, round(taken * fps / sampling.value))
    most = max(taken, int(SECONDS * fps))
    return max(1, math.ceil(frames / math.ceil(max(1, frames) / most)))


def clip_windows(path: Path, plan: Plan, span: int, start: int = 0, stop: int | None = None) -> Iterator[Window]:
    """Frames `start` … `stop` − 1 of a file in windows of `span`, counted from `start`. Of each the middle frames of
    plan.frames equal segments are taken, as for a whole clip; where the clip ends within a window, its last frame is
    repeated."""
    picks = Counter(segment_indices(span, plan.frames))
    with VideoReader(path) as video:
        taken: list[Tensor] = []
        at, last = -1, None
        for at, last in enumerate(video.stream(start, stop)):
            place = at % span
            if place in picks:
                taken += [_seen(last(), plan)] * picks[place]
            if place == span - 1:
                yield Window(at + 1 - span, at + 1, torch.stack(taken))
                taken = []
        if last is not None and (at + 1) % span:
            taken += [_seen(last(), plan)] * (plan.frames - len(taken))
            yield Window(at - at % span, at + 1, torch.stack(taken))


def _seen(frame, plan: Plan) -> Tensor:
    return prepare(torch.from_numpy(frame)[None], plan)[0, 0]
