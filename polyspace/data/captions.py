"""What a generated clip shows, in words: captions, the names of its classes, and its attributes."""

import torch
from torch import Tensor

from polyspace.data.moving import MovingClips
from polyspace.data.render import SHAPES, turns_of_class

COLOURS = ("grey", "blue", "green", "turquoise", "red", "purple", "yellow", "white")  # red·4 + green·2 + blue
BRIGHT = 0.65  # a channel counts as on above this; channels lie in 0.3 … 1
PACE = {1: "slowly", 2: "quickly", 3: "very fast"}
TEMPLATES = ("{}", "a video of objects {}", "something {}")


def colour_numbers(colour: Tensor) -> Tensor:
    """(N,O,3) in 0..1 -> numbers into COLOURS (N,O)."""
    return ((colour > BRIGHT).long() * torch.tensor([4, 2, 1])).sum(-1)


def motion_words(label: int) -> str:
    """The motion of a class, e.g. "moving quickly to the left"."""
    turns = turns_of_class(label)
    pace = PACE.get(abs(turns), f"at pace {abs(turns)}")
    return f"moving {pace} to the {'right' if turns > 0 else 'left'}"


def caption_clips(clips: MovingClips) -> list[str]:
    """One caption a clip: its objects from top to bottom with colour, shape and height, then the motion."""
    out = []
    colours = colour_numbers(clips.colour).tolist()
    rows = zip(clips.objects.tolist(), clips.shape.tolist(), colours, clips.height.tolist(), strict=True)
    for label, (count, shape, colour, height) in zip(clips.label.tolist(), rows, strict=True):
        things = sorted(list(zip(height, shape, colour, strict=True))[:count])
        said = [f"a {COLOURS[c]} {SHAPES[s]} {_place(y)}" for y, s, c in things]
        out.append(f"{' and '.join(said)} {motion_words(label)}")
    return out


def _place(height: float) -> str:
    if height < -0.25:
        return "at the top"
    return "at the bottom" if height > 0.25 else "in the middle"


def attribute_names() -> list[str]:
    return [*SHAPES, *COLOURS]


def attributes(clips: MovingClips) -> Tensor:
    """Which shapes and colours a clip shows, float (N,12) of 0 and 1, in the order of `attribute_names`."""
    shown = torch.arange(clips.shape.shape[1]) < clips.objects[:, None]
    out = torch.zeros(len(clips), len(SHAPES) + len(COLOURS) + 1)
    none = out.shape[1] - 1
    for numbers in (clips.shape, len(SHAPES) + colour_numbers(clips.colour)):
        out.scatter_(1, torch.where(shown, numbers, none), 1.0)
    return out[:, :none]
