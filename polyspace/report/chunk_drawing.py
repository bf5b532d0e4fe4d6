"""Chunks drawn over a frame: a colour for each, and a line where two meet."""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def palette(count: int) -> NDArray[np.float32]:
    """(count,3) colours in 0..1, neighbours in number far apart in hue."""
    hue = (np.arange(count) * 0.61803398875) % 1.0
    light = 0.55 + 0.4 * ((np.arange(count) * 0.3819660113) % 1.0)
    turned = (hue[:, None] + np.array([0.0, 1 / 3, 2 / 3])) % 1.0
    ramp = np.clip(np.abs(6 * turned - 3) - 1, 0, 1)
    return (light[:, None] * (0.25 + 0.75 * ramp)).astype(np.float32)


def spread(cells: NDArray, height: int, width: int) -> NDArray:
    """(h,w,…) -> (height,width,…): each pixel gets its cell's value, whatever the sizes."""
    rows = np.arange(height) * cells.shape[0] // height
    columns = np.arange(width) * cells.shape[1] // width
    return cells[rows][:, columns]


def borders(owner: NDArray, thick: int = 1) -> NDArray[np.bool_]:
    """(H,W): pixels within `thick` of another chunk's, on the lower and right side."""
    out = np.zeros(owner.shape, bool)
    for n in range(1, thick + 1):
        out[n:] |= owner[n:] != owner[:-n]
        out[:, n:] |= owner[:, n:] != owner[:, :-n]
    return out


def draw_chunks(frame: Image, owner: NDArray, colours: NDArray, fill: float = 0.35, thick: int | None = None) -> Image:
    """`frame` (H,W,3) with the chunks `owner` (h,w) of this moment over it: each in its colour of `colours` (M,3),
    `fill` of it, with white lines of `thick` pixels between them (by default a pixel for each 160 of the frame)."""
    height, width = frame.shape[:2]
    mine = spread(owner, height, width)
    thick = max(1, round(min(height, width) / 160)) if thick is None else thick
    out = (1 - fill) * frame + 255 * fill * colours[mine] if fill else frame.astype(np.float32)
    if thick:
        out[borders(mine, thick)] = 255
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)
