"""What a pretrained encoder does with some clips, for pictures: its chunks, its mistakes, its tokens against motion."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.losses.energy import energy
from polyspace.models.vjepa.look import chunk_maps
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.vjepa.jepa import JepaPhase
from polyspace.utils.distrib import statistics_over
from polyspace.utils.looks_file import Looks, motion_of, tokens_against_motion

SHOWN, COUNTED = 4, 64  # clips in pictures, and whose tokens are counted
MASKS = 32  # a cell's error is the mean over those that ask for it
PART = 8  # clips a forward


def pixels_of(clips: Tensor, scale: dict[str, Any]) -> NDArray[np.uint8]:
    """Normalised clips (n,T,H,W,3) back to uint8."""
    levels = 255 * (clips.cpu().float() * torch.tensor(scale["std"]) + torch.tensor(scale["mean"]))
    return levels.round().clamp(0, 255).to(torch.uint8).numpy()


@torch.no_grad()
def looks_at(encoder: HNetViT | TubeletViT, clips: Tensor, scale: dict[str, Any]) -> Looks:
    """Normalised clips and their chunks; where a gate chooses these, also the regions that they join to."""
    if isinstance(encoder, TubeletViT):
        return Looks(pixels_of(clips, scale))
    ways = {"chunks": False} | ({"regions": True} if encoder.routing.gate is not None else {})
    maps = {word: chunk_maps(encoder.encode(clips, regions=regions)) for word, regions in ways.items()}
    return Looks(pixels_of(clips, scale), maps)


@torch.no_grad()
def mistakes(phase: JepaPhase, clips: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The first mask over normalised clips (n,t,h,w), and the energy of each cell's prediction, averaged over the masks
    that ask for it; NaN where none does, and where whole chunks are asked for."""
    total, count, first, known = None, None, None, None
    behind = phase.settings.total_steps  # from here on all cells weigh alike
    for n in range(MASKS):
        with statistics_over("none"):  # the other ranks are not asked
            answer = phase.answer(VideoBatch(video=clips, place=(behind + n, 0)), known)
        known, (masks, asked, prediction) = answer[0], answer[-3:]
        if total is None or count is None:
            first = masks.hidden
            total = torch.zeros(masks.hidden.shape, dtype=torch.float32, device=clips.device).flatten(1)
            count = torch.zeros_like(total)
        if asked.index is None:
            break
        wanted = asked.hidden_weight > 0
        e = energy(prediction, asked.goal, phase.settings.energy).float()
        total.scatter_add_(1, asked.index, torch.where(wanted, e, 0))
        count.scatter_add_(1, asked.index, wanted.float())
    assert total is not None and count is not None and first is not None
    error = torch.where(count > 0, total / count.clamp_min(1), torch.nan).view(first.shape)
    return first.cpu().numpy(), error.cpu().numpy()


@torch.no_grad()
def tokens_and_motion(encoder: HNetViT, clips: Tensor, scale: dict[str, Any]) -> dict[str, Any]:
    """As `tokens_against_motion`, of normalised clips."""
    device = next(encoder.parameters()).device
    tokens: list[int] = []
    motion: list[float] = []
    for part in clips.split(PART):
        tokens += encoder.encode(part.to(device)).valid.sum(1).tolist()
        motion += [motion_of(video) for video in pixels_of(part, scale)]
    steps, rows, columns = clips.shape[1] // encoder.unit_frames, *(s // encoder.unit for s in clips.shape[2:4])
    return tokens_against_motion(tokens, motion, steps * rows * columns)
