"""A video's frames with tokens drawn over them: panels side by side, a heading over each, a line of text below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from polyspace.report.chunk_drawing import borders

Box = tuple[float, float, float, float]  # top, left, height, width in pixels
Frame = NDArray[np.uint8]
SMALL, NARROW = 180, 200  # pixels: a picture's short side and a panel's width are not less
GAP, GROUND, INK, DIM = 8, (24, 24, 28), (235, 235, 235), 0.6


def picture_shape(height: int, width: int, limit: int) -> tuple[int, int]:
    """The frame's own size; scaled down where it has more than `limit` rows or twice as many columns, magnified by a
    whole number where it is too small for lines and text."""
    scale = min(limit / height, 2 * limit / width)
    if scale < 1:
        return max(1, round(height * scale)), max(1, round(width * scale))
    times = max(1, min(-(-SMALL // min(height, width)), int(scale)))
    return height * times, width * times


def place_cells(cells: NDArray, shape: tuple[int, int], box: Box, outside: int = -1) -> NDArray:
    """(h,w) -> (H,W): each pixel of a picture gets the value of the cell it lies in, where the grid fills `box`."""
    top, left, height, width = box
    rows = np.floor((np.arange(shape[0]) + 0.5 - top) / height * cells.shape[0]).astype(int)
    columns = np.floor((np.arange(shape[1]) + 0.5 - left) / width * cells.shape[1]).astype(int)
    inside = [(at >= 0) & (at < n) for at, n in zip((rows, columns), cells.shape, strict=True)]
    out = cells[rows.clip(0, cells.shape[0] - 1)][:, columns.clip(0, cells.shape[1] - 1)]
    return np.where(inside[0][:, None] & inside[1], out, outside)


@dataclass(frozen=True)
class Layer:
    """What is laid over the frames of a time step, and how much of the frame it hides."""

    colours: Image.Image
    opacity: Image.Image

    def over(self, picture: Image.Image) -> Image.Image:
        out = picture.copy()
        out.paste(self.colours, (0, 0), self.opacity)
        return out


def draw_layer(
    owner: NDArray, begins: NDArray, shape: tuple[int, int], box: Box, colours: NDArray | None, fill: float
) -> Layer:
    """The tokens `owner` (h,w) of a moment: `fill` of each in its colour of `colours` (M,3) in 0..1 (None: no colours),
    lines between them, a dot in the cells `begins` (n,2), and what lies outside `box` dimmed."""
    mine = place_cells(owner, shape, box)
    outside = mine < 0
    if colours is None:
        paint, opacity = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    else:
        paint = np.round(255 * colours).astype(np.uint8)[np.where(outside, 0, mine)]
        opacity = np.full(shape, round(255 * fill), np.uint8)
    paint[outside], opacity[outside] = 0, round(255 * DIM)
    lines = borders(mine, max(1, round(min(shape) / 200)))
    paint[lines], opacity[lines] = 255, 200
    made = Layer(Image.fromarray(paint), Image.fromarray(opacity))
    _dots(made, begins, owner.shape, box)
    return made


def _dots(layer: Layer, cells: NDArray, grid: tuple[int, ...], box: Box) -> None:
    """White dots with a dark edge in the middle of cells."""
    top, left, height, width = box
    down, across = height / grid[0], width / grid[1]
    radius = min(max(0.1 * min(down, across), 1.5), 7.0)
    on, mask = ImageDraw.Draw(layer.colours), ImageDraw.Draw(layer.opacity)
    for row, column in np.asarray(cells).reshape(-1, 2).tolist():
        y, x = top + (row + 0.5) * down, left + (column + 0.5) * across
        for size, colour in ((radius + max(1.0, radius / 3), (0, 0, 0)), (radius, (255, 255, 255))):
            place = (x - size, y - size, x + size, y + size)
            on.ellipse(place, fill=colour)
            mask.ellipse(place, fill=255)


class Sheet:
    """The picture of a moment: frames of one size, each under one layer a panel. `shape` (height, width) is that of the
    whole, even for yuv420p."""

    def __init__(self, picture: tuple[int, int], panels: int, legend: str) -> None:
        self.picture, self.panels, self.legend = picture, panels, legend
        self.size = min(max(round(picture[0] / 22), 14), 26)  # of the text
        self.line = 2 * self.size
        self.panel = max(picture[1], NARROW if panels > 1 else 2 * NARROW)
        width = panels * self.panel + (panels + 1) * GAP
        height = picture[0] + 2 * self.line
        self.shape = (height + height % 2, width + width % 2)
        self._headings: tuple[str, ...] = ()
        self._sheet = Image.new("RGB", self.shape[::-1], GROUND)

    def draw(self, frame: Frame, layers: Sequence[Layer], headings: Sequence[str], foot: str) -> Frame:
        """(H,W,3) of any size -> the sheet."""
        if tuple(headings) != self._headings:
            self._headings = tuple(headings)
            self._head()
        picture = Image.fromarray(frame)
        if frame.shape[:2] != self.picture:
            larger = self.picture[0] > frame.shape[0]
            how = Image.Resampling.NEAREST if larger else Image.Resampling.BILINEAR
            picture = picture.resize(self.picture[::-1], how, reducing_gap=None if larger else 2.0)
        for i, layer in enumerate(layers):
            left = GAP + i * (self.panel + GAP) + (self.panel - self.picture[1]) // 2
            self._sheet.paste(layer.over(picture), (left, self.line))
        self._foot(foot)
        return np.asarray(self._sheet)

    def _head(self) -> None:
        draw = ImageDraw.Draw(self._sheet)
        draw.rectangle((0, 0, self.shape[1], self.line - 1), fill=GROUND)
        for i, text in enumerate(self._headings):
            middle = GAP + i * (self.panel + GAP) + self.panel / 2
            font = _fitting(text, self.panel, self.size)
            draw.text((middle, self.line / 2), text, INK, font, anchor="mm")

    def _foot(self, text: str) -> None:
        draw = ImageDraw.Draw(self._sheet)
        top, room = self.line + self.picture[0], self.shape[1] - 2 * GAP
        draw.rectangle((0, top, self.shape[1], self.shape[0]), fill=GROUND)
        font = _fitting(f"{text}    O {self.legend}", room, max(12, round(0.8 * self.size)))
        draw.text((GAP, top + self.line / 2), text, INK, font, anchor="lm")
        left, r = self.shape[1] - GAP - font.getlength(self.legend), font.size / 4
        draw.text((left, top + self.line / 2), self.legend, INK, font, anchor="lm")
        x, y = left - 3 * r, top + self.line / 2
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def _fitting(text: str, room: float, size: int) -> ImageFont.FreeTypeFont:
    """The font in which a text takes up no more than `room` pixels, as far as it stays readable."""
    while True:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if size <= 8 or font.getlength(text) <= room:
            return font
        size -= 1
