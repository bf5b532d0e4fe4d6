"""The clips that the small backbones learn from: one circling object, its speed drawn from a continuum.

The classes of the demo are whole turns; here no clip need have one. But the ViViT's labels are bins of the same
quantity, so it knows more of the demo's task than any label there says.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.data import render
from polyspace.data.batch import VideoBatch
from polyspace.data.sampling import segment_indices
from polyspace.data.transforms import normalize, resize
from polyspace.utils.log import Progress
from polyspace.utils.plan import Plan

SIDE, RENDERED, FRAMES = 24, 48, 37
MAX_TURNS, BINS = 4.5, 18
LOOKS = [f"{colour} {shape}" for shape in render.SHAPES for colour in render.COLOURS]
TURNS = [f"{a / 2 - MAX_TURNS:+.1f} to {(a + 1) / 2 - MAX_TURNS:+.1f} turns" for a in range(BINS)]


@dataclass(frozen=True)
class StateClips:
    """video uint8 (n,T,H,W,3); turns (n,) a clip, positive clockwise; place (n,T,4) of the object, x, y, dx, dy (half
    widths; share of the fastest); look (n,) as in LOOKS."""

    video: Tensor
    turns: Tensor
    place: Tensor
    look: Tensor

    def __len__(self) -> int:
        return len(self.look)


def draw_clips(count: int, seed: int) -> StateClips:
    """`count` clips with continuous speeds, the same for the same seed."""
    drawn = []
    with Progress(count, "clips", "clip") as bar:
        for i in range(count):
            drawn.append(_draw(np.random.default_rng([seed, i])))
            bar.step()
    video, turns, place, look = zip(*drawn, strict=True)
    return StateClips(torch.stack(video), torch.tensor(turns).float(), torch.stack(place), torch.tensor(look))


def _draw(rng: np.random.Generator) -> tuple[Tensor, float, Tensor, int]:
    turns = rng.uniform(-MAX_TURNS, MAX_TURNS)
    scene = render.draw_scene(rng)
    angle = scene.phase + 2 * math.pi * turns * np.arange(FRAMES) / FRAMES
    x = scene.centre[0] + scene.radius * np.cos(angle)
    y = scene.centre[1] + scene.radius * np.sin(angle)
    canvas = render.ground(rng, FRAMES, RENDERED, RENDERED)
    render.paint(canvas, (x, y), scene.shape, scene.size, render.COLOURS[scene.colour])
    canvas += rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    video = torch.from_numpy((canvas.clip(0, 1) * 255).round().astype(np.uint8))
    speed = scene.radius * turns / MAX_TURNS
    place = torch.from_numpy(np.stack([x, y, -speed * np.sin(angle), speed * np.cos(angle)], 1)).float()
    return resize(video, (SIDE, SIDE)), turns, place, LOOKS.index(f"{scene.colour} {scene.shape}")


def turns_bin(turns: Float[Tensor, " B"]) -> Tensor:
    """The class of a speed, as in TURNS."""
    return ((turns + MAX_TURNS) * BINS / (2 * MAX_TURNS)).long().clamp(0, BINS - 1)


def make_batch(
    clips: StateClips,
    indices: Tensor,
    plan: Plan,
    picks: list[int] | None = None,
    generator: torch.Generator | None = None,
) -> VideoBatch:
    """The clips' frames `picks` (the plan's segments' middles), normalised; with a generator also a mirror and quarter
    turns, the same for all."""
    picks = segment_indices(FRAMES, plan.frames) if picks is None else picks
    video, turns, place = clips.video[indices][:, picks], clips.turns[indices], clips.place[indices][:, picks]
    if generator is not None:
        mirror, quarters = (int(torch.randint(n, (), generator=generator)) for n in (2, 4))
        if mirror:
            video, turns, place = video.flip(3), -turns, place * torch.tensor([-1.0, 1.0, -1.0, 1.0])
        video = torch.rot90(video, quarters, (2, 3))
        for _ in range(quarters):  # rot90 of (rows, columns) takes (x, y) to (y, −x) on the screen
            x, y, dx, dy = place.unbind(-1)
            place = torch.stack([y, -x, dy, -dx], -1)
    facts = {"turns": turns, "place": place, "look": clips.look[indices]}
    return VideoBatch(video=normalize(video, plan), features=facts)
