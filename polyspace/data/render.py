"""Drawing of generated clips: one object on a textured ground, whose class is how it moves and nothing else.

The object goes round a circle with v turns in a clip of P frames, P prime: every class visits the same P places once
each, in another order. The set of frames therefore says nothing about the class; only their order does.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHAPES = ("disc", "square", "triangle", "ring")
COLOURS = {
    "red": (0.9, 0.2, 0.2),
    "green": (0.25, 0.8, 0.3),
    "blue": (0.25, 0.4, 0.95),
    "yellow": (0.95, 0.85, 0.2),
    "purple": (0.7, 0.3, 0.85),
    "white": (0.95, 0.95, 0.95),
}


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows. Lengths are in half frame heights, angles in radians."""

    shape: str
    colour: str
    size: float
    centre: tuple[float, float]
    radius: float
    phase: float


@dataclass(frozen=True)
class Clip:
    """video uint8 (T,H,W,3), mask bool (T,H,W) of the object, and what is in it."""

    video: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    scene: Scene


def prime_at_least(n: int) -> int:
    while any(n % k == 0 for k in range(2, math.isqrt(n) + 1)) or n < 2:
        n += 1
    return n


def turns_of_class(label: int) -> int:
    """0, 1, 2, 3 … -> +1, −1, +2, −2 …: turns a clip, positive clockwise on the screen."""
    return (label // 2 + 1) * (1 if label % 2 == 0 else -1)


def draw_scene(rng: np.random.Generator) -> Scene:
    u = rng.uniform
    return Scene(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        size=u(0.2, 0.3),
        centre=(u(-0.12, 0.12), u(-0.12, 0.12)),
        radius=u(0.42, 0.58),
        phase=u(0, 2 * math.pi),
    )


def orbit_clip(rng: np.random.Generator, turns: int, frames: int, height: int, width: int, difficulty: float) -> Clip:
    """A clip of `frames` frames with `turns` turns; `difficulty` ≥ 0 adds noise, a drifting ground and distractors."""
    scene = draw_scene(rng)
    t = np.arange(frames)
    angle = scene.phase + 2 * math.pi * ((turns * t) % frames) / frames
    x = scene.centre[0] + scene.radius * np.cos(angle)
    y = scene.centre[1] + scene.radius * np.sin(angle)
    canvas = ground(rng, frames, height, width, drift=0.3 * difficulty)
    for _ in range(round(2 * difficulty)):
        other = draw_scene(rng)
        swing = other.phase + 2 * math.pi * rng.uniform(-4, 4) * t / frames
        path = (1.3 * other.radius * np.cos(swing), 1.3 * other.radius * np.sin(swing))
        paint(canvas, path, other.shape, 0.6 * other.size, COLOURS[other.colour])
    alpha = paint(canvas, (x, y), scene.shape, scene.size, COLOURS[scene.colour])
    canvas += rng.normal(0, 0.02 + 0.06 * difficulty, canvas.shape).astype(np.float32)
    return Clip((canvas.clip(0, 1) * 255).round().astype(np.uint8), alpha > 0.5, scene)


def ground(rng: np.random.Generator, frames: int, height: int, width: int, drift: float = 0.0) -> NDArray[np.float32]:
    """A smooth random texture (T,H,W,3), moving by `drift` half heights over the clip in a random direction."""
    coarse = rng.uniform(0, 0.55, (8, 8, 3)).astype(np.float32)
    heading = rng.uniform(0, 2 * math.pi)
    shift = drift * np.linspace(0, 1, frames)
    rows = np.linspace(1, 5, height)[None] + 2 * (shift * math.sin(heading))[:, None] + 0.5
    cols = np.linspace(1, 5, width)[None] + 2 * (shift * math.cos(heading))[:, None] + 0.5
    return _bilinear(coarse, rows, cols)


def _bilinear(image: NDArray[np.float32], rows: NDArray, cols: NDArray) -> NDArray[np.float32]:
    """Sample a wrapping image at rows (T,H) × cols (T,W) -> (T,H,W,3)."""
    n = image.shape[0]
    r0, c0 = np.floor(rows).astype(int), np.floor(cols).astype(int)
    fr, fc = (rows - r0)[:, :, None, None], (cols - c0)[:, None, :, None]

    def at(dr: int, dc: int) -> NDArray[np.float32]:
        return image[((r0 + dr) % n)[:, :, None], ((c0 + dc) % n)[:, None, :]]

    top = at(0, 0) * (1 - fc) + at(0, 1) * fc
    low = at(1, 0) * (1 - fc) + at(1, 1) * fc
    return (top * (1 - fr) + low * fr).astype(np.float32)


def paint(
    canvas: NDArray[np.float32],
    path: tuple[NDArray, NDArray],
    shape: str,
    size: float | NDArray,
    colour: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Lay an antialiased shape over the canvas (T,H,W,3) along `path` (x (T,), y (T,)); returns its alpha (T,H,W)."""
    _, height, width, _ = canvas.shape
    scale = height / 2
    row = ((np.arange(height) + 0.5) / scale - 1)[None, :, None]
    col = ((np.arange(width) + 0.5 - width / 2) / scale)[None, None, :]
    radius = np.broadcast_to(np.asarray(size, dtype=np.float64), path[0].shape)[:, None, None]
    x, y = (col - path[0][:, None, None]) / radius, (row - path[1][:, None, None]) / radius
    if shape == "disc":
        inside = 1 - np.hypot(x, y)
    elif shape == "square":
        inside = 0.85 - np.maximum(np.abs(x), np.abs(y))
    elif shape == "triangle":
        inside = np.minimum(0.55 - y, 0.5 * (y + 1.1) - 0.87 * np.abs(x))
    else:
        inside = 0.28 - np.abs(np.hypot(x, y) - 0.72)
    alpha = np.clip(inside * radius * scale + 0.5, 0, 1).astype(np.float32)
    canvas += alpha[..., None] * (np.asarray(colour, dtype=np.float32) - canvas)
    return alpha
