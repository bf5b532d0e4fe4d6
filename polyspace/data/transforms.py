"""Pixels to a backbone's input, in torch on uint8: resize, crop, scale, normalise, by that backbone's own plan."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from polyspace.utils.plan import Plan


def resized_shape(height: int, width: int, rule: int | tuple[int, int]) -> tuple[int, int]:
    """Short side to `rule`, the long side scaled alike and cut to whole pixels (as torchvision does)."""
    if isinstance(rule, tuple):
        return rule
    short, long = sorted((height, width))
    other = int(rule * long / short)
    return (rule, other) if height <= width else (other, rule)


def resize(video: UInt8[Tensor, "T H W 3"], shape: tuple[int, int], mode: str = "bilinear") -> UInt8[Tensor, "T h w 3"]:
    """Antialiased resize on uint8, as PIL and torchvision do it; the same size passes through untouched."""
    if tuple(video.shape[1:3]) == shape:
        return video
    pixels = video.permute(0, 3, 1, 2)
    smooth = mode in ("bilinear", "bicubic")
    out = F.interpolate(pixels, shape, mode=mode, antialias=smooth, align_corners=False if smooth else None)
    return out.permute(0, 2, 3, 1)


def crop_at(video: UInt8[Tensor, "T H W 3"], shape: tuple[int, int], at: float = 0.5) -> UInt8[Tensor, "T h w 3"]:
    """A window of `shape`, centred on the short side, at `at` (0..1) along the long one; overhang is 0."""
    height, width = video.shape[1:3]
    pad_h, pad_w = max(0, shape[0] - height), max(0, shape[1] - width)
    if pad_h or pad_w:
        video = F.pad(video, (0, 0, pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        height, width = video.shape[1:3]
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    if at != 0.5:
        if height > width:
            top = round((height - shape[0]) * at)
        else:
            left = round((width - shape[1]) * at)
    return video[:, top : top + shape[0], left : left + shape[1]]


def seen_box(height: int, width: int, plan: Plan) -> tuple[float, float, float, float]:
    """(top, left, height, width) in pixels of a frame: what the plan's centre crop shows of it, before the resize. A
    crop that overhangs begins below 0."""
    shape = resized_shape(height, width, plan.resize)
    down, across = height / shape[0], width / shape[1]
    room = [have - want for have, want in zip(shape, plan.crop, strict=True)]
    top, left = (r // 2 if r >= 0 else -(-r // 2) for r in room)
    return top * down, left * across, plan.crop[0] * down, plan.crop[1] * across


def random_crop(
    video: UInt8[Tensor, "T H W 3"],
    shape: tuple[int, int],
    generator: torch.Generator,
    area: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = (0.75, 1.35),
    mode: str = "bilinear",
) -> UInt8[Tensor, "T h w 3"]:
    """One window for all frames, of a random share of the frame's area and aspect (width/height, drawn evenly in its
    logarithm), resized to `shape`. Cut to the frame where it does not fit. V-JEPA's ranges (arXiv 2404.08471, C.1)."""
    height, width = video.shape[1:3]
    size, long, y, x = torch.rand(4, generator=generator).tolist()
    pixels = height * width * (area[0] + (area[1] - area[0]) * size)
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** long
    rows = min(max(round((pixels / ratio) ** 0.5), 1), height)
    columns = min(max(round((pixels * ratio) ** 0.5), 1), width)
    top, left = round(y * (height - rows)), round(x * (width - columns))
    return resize(video[:, top : top + rows, left : left + columns], shape, mode)


def normalize(video: UInt8[Tensor, "*T h w 3"], plan: Plan) -> Float[Tensor, "*T h w 3"]:
    """uint8 -> float32: (v·scale + offset − mean)/std in one multiply and add."""
    mean, std = torch.tensor(plan.mean, dtype=torch.float64), torch.tensor(plan.std, dtype=torch.float64)
    weight, bias = (plan.scale / std).float(), ((plan.offset - mean) / std).float()
    return torch.addcmul(bias, video.float(), weight)


def prepare(video: UInt8[Tensor, "T H W 3"], plan: Plan, crops: int = 1) -> Float[Tensor, "V T h w 3"]:
    """Decoded frames to V = `crops` normalised views: the centre, or crops spread along the long side."""
    shape = resized_shape(video.shape[1], video.shape[2], plan.resize)
    video = resize(video, shape, plan.interpolation)
    places = [0.5] if crops == 1 else [c / (crops - 1) for c in range(crops)]
    return torch.stack([normalize(crop_at(video, plan.crop, at), plan) for at in places])
