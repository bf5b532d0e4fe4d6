"""`polyspace overlay`: a video in which the chunks that the encoder chose are drawn over a clip's own frames.

The clip is taken in consecutive windows of as many frames as the student takes, each at its own time steps; every frame
of the clip is drawn, with the map of the step it lies in. Chunks of two windows have nothing to do with each other.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import polyspace
from polyspace.api import PolySpace
from polyspace.config import Config, parse, run_command
from polyspace.data.sampling import Sampling
from polyspace.data.transforms import seen_box
from polyspace.data.video_reader import VideoReader
from polyspace.data.video_writer import ending_of, write_video
from polyspace.data.windows import Window, clip_windows, window_span
from polyspace.report.chunk_drawing import palette
from polyspace.report.overlay_sheet import Box, Layer, Sheet, draw_layer, picture_shape
from polyspace.utils.checkpoint_io import try_writing
from polyspace.utils.chunk_map import ChunkMap, tubelets
from polyspace.utils.errors import UserError
from polyspace.utils.folders import clear_left_over
from polyspace.utils.log import Progress, say, warn

FPS = 25.0  # of a file that does not tell


class OverlayConfig(Config):
    words = ("clip",)
    short = {"out": "o"}
    clip: Path = Field(description="the video")
    run: Path = Field(description="folder of a main.py run, of an encoder, or of a bundle")
    out: Path = Field(description="video to write: .mp4, .webm or .avi")
    num_chunks: int | None = Field(None, ge=1, description="budget of tokens a window; none: content decides")
    fill: float = Field(0.35, ge=0, le=1, description="how much of a chunk's colour covers the frame")
    start: float = Field(0.0, ge=0, description="seconds of the clip to leave out at its beginning")
    seconds: float | None = Field(None, gt=0, description="how much of the clip is drawn; none: all")
    height: int = Field(720, ge=16, description="most rows of a panel; larger frames are scaled down")
    stride: float | None = Field(
        None, gt=0, description="frames from one that the student takes to the next; none: as it was trained"
    )
    fps: float | None = Field(None, gt=0, description="frames a second of the output; none: the clip's own, on average")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


@dataclass
class Drawn:
    """What was drawn: the student and whether it chooses its tokens, the clip's rate, frames a window, tubelets of any,
    the sizes (height, width) of the clip's frames and of a panel, the tokens of each window, the frames, and where
    decoding stopped early."""

    student: str
    chooses: bool
    fps: float
    span: int
    tubelets: int
    frame: tuple[int, int] = (0, 0)
    picture: tuple[int, int] = (0, 0)
    tokens: list[int] = field(default_factory=list)
    frames: int = 0
    damage: str | None = None


def overlay(config: OverlayConfig) -> Drawn:
    """Write the video. UserError or VideoError where it can't be; then nothing is written."""
    _check(config)
    with VideoReader(config.clip) as video:
        fps = video.fps or FPS
        start = round(config.start * fps)
        stop = None if config.seconds is None else start + max(1, round(config.seconds * fps))
        there = max(0, min(video.expected, stop or video.expected) - start)
        if video.expected and not there:
            raise UserError(f"--start {config.start:g}: {config.clip} ends after {video.expected / fps:.1f} s")
        ps = polyspace.load(config.run, device=config.device)
        plan = ps.bundle.card.plan
        how = Sampling("stride", config.stride) if config.stride else Sampling.parse(ps.bundle.sampling)
        span = window_span(how, plan.frames, there, fps)
        done = Drawn(ps.student, ps.chooses, fps, span, int(np.prod(ps.bundle.card.grid)))
        windows = clip_windows(config.clip, plan, span, start, stop)
        with Progress(there, "overlay", unit="frame") as bar:
            pictures = _pictures(config, ps, done, windows, video.stream(start, stop), bar)
            write_video(config.out, pictures, config.fps or fps)
        done.damage = video.damage
    return done


def _check(config: OverlayConfig) -> None:
    """What can be known before any work."""
    ending_of(config.out)
    if not config.clip.is_file():
        raise UserError(f"{config.clip}: no such file")
    if config.out.is_dir():
        raise UserError(f"--out {config.out} is a folder")
    if config.out.exists() and config.out.samefile(config.clip):
        raise UserError(f"--out {config.out} is the clip itself")
    try_writing(config.out.parent)
    clear_left_over(config.out.parent)


def _pictures(
    config: OverlayConfig,
    ps: PolySpace,
    done: Drawn,
    windows: Iterator[Window],
    stream: Iterator[Callable[[], NDArray[np.uint8]]],
    bar: Progress,
) -> Iterator[NDArray[np.uint8]]:
    """A sheet for each frame of the clip; `done` is kept up to date."""
    grid = ps.bundle.card.grid
    panels: _Panels | None = None
    for window in windows:
        chunks = ps.chunk_maps(window.clip[None], config.num_chunks)[0]
        done.tokens.append(chunks.tokens)
        for place, rgb in enumerate(itertools.islice(stream, window.stop - window.start)):
            frame = rgb()
            if panels is None:
                done.frame = (frame.shape[0], frame.shape[1])
                done.picture = picture_shape(*done.frame, config.height)
                top, left, height, width = seen_box(*done.frame, ps.bundle.card.plan)
                down, across = (a / b for a, b in zip(done.picture, done.frame, strict=True))
                box = (top * down, left * across, height * down, width * across)
                panels = _Panels(done.picture, box, grid, ps.chooses, config.fill)
            panels.show(chunks, place * grid[0] // done.span, window.start)
            seconds = config.start + (window.start + place) / done.fps
            yield panels.draw(frame, f"{seconds:.1f} s, window {len(done.tokens)}")
            done.frames += 1
            bar.step()
    if not done.frames:
        raise UserError(f"--start {config.start:g}: {config.clip} ends before")
    next(stream, None)  # what stops the decoder is found behind the last frame


class _Panels:
    """The sheet, and the layers of the time step that is shown."""

    def __init__(
        self, picture: tuple[int, int], box: Box, grid: tuple[int, int, int], chooses: bool, fill: float
    ) -> None:
        self.picture, self.box, self.chooses, self.fill = picture, box, chooses, fill
        top, left, height, width = box
        unseen = top > 0 or left > 0 or height < picture[0] or width < picture[1]
        self.sheet = Sheet(picture, 2 if chooses else 1, "a token begins" + ", dark: not seen" * unseen)
        plain = tubelets(grid)
        self.grid = draw_layer(plain.owner[0], plain.beginnings()[: grid[1] * grid[2], 1:], picture, box, None, 0)
        self.headings, self.layers = [f"tubelets: {plain.tokens} tokens"], [self.grid]
        self._shown: tuple[int, int] | None = None
        self._begins: NDArray[np.int64] = np.zeros((0, 3), np.int64)
        self._colours: NDArray[np.float32] = np.zeros((0, 3), np.float32)

    def show(self, chunks: ChunkMap, step: int, window: int) -> None:
        """Make the layers of a step of a window, unless they are there."""
        if not self.chooses or self._shown == (window, step):
            return
        if self._shown is None or self._shown[0] != window:
            self._begins, self._colours = chunks.beginnings(), palette(chunks.tokens)
        self._shown = (window, step)
        begins = self._begins[self._begins[:, 0] == step, 1:]
        layer: Layer = draw_layer(chunks.owner[step], begins, self.picture, self.box, self._colours, self.fill)
        self.layers, self.headings = [layer, self.grid], [f"chunks: {chunks.tokens} tokens", self.headings[-1]]

    def draw(self, frame: NDArray[np.uint8], foot: str) -> NDArray[np.uint8]:
        return self.sheet.draw(frame, self.layers, self.headings, foot)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def main(argv: Sequence[str]) -> int:
    config = parse(
        OverlayConfig,
        argv,
        prog="polyspace overlay",
        about="A video in which the chunks that the encoder chose are drawn over a clip's frames, beside its tubelets.",
        example="polyspace overlay clip.mp4 --run outputs -o out.mp4",
    )
    done = overlay(config)
    if done.damage:
        warn(f"{config.clip}: {done.damage}; what comes before is drawn")
    if done.picture != done.frame:
        way = "scaled down" if done.picture[0] < done.frame[0] else "magnified"
        say(f"frames of {_size(done.frame)} are {way} to {_size(done.picture)}")
    number, mean = len(done.tokens), sum(done.tokens) / len(done.tokens)
    said = f"{done.frames} frames in {number} window{'s' * (number > 1)} of {done.span}"
    if done.chooses:
        say(f"{said}: {mean:.1f} tokens on average, {done.tubelets} tubelets ({mean / done.tubelets:.0%})")
    else:
        say(f"{said}: {done.student} does not choose its tokens, so only its {done.tubelets} tubelets are drawn")
    say(f"-> {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
