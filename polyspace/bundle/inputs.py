"""What a person calls a video, as a backbone takes it in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.data.extract import Views, decode_clip
from polyspace.data.sampling import Sampling
from polyspace.data.transforms import prepare
from polyspace.utils.errors import UserError
from polyspace.utils.plan import Plan

Video = str | Path | np.ndarray | Tensor
BATCH = 8  # clips a forward


def batches(videos: Video | Sequence[Video]) -> tuple[bool, list[list[Video]]]:
    """Whether it is one video, and all of them in parts of a forward's size."""
    if isinstance(videos, str | Path | np.ndarray | Tensor):
        return True, [[videos]]
    every = list(videos)
    return False, [every[i : i + BATCH] for i in range(0, len(every), BATCH)]


def prepare_videos(videos: Sequence[Video], plan: Plan, sampling: str) -> Float[Tensor, "B T H W 3"]:
    """Frames sampled, resized, cropped and normalised by the plan. UserError for what is no video, VideoError for a
    file that can't be read."""
    how, made = Sampling.parse(sampling), []
    for video in videos:
        if isinstance(video, str | Path):
            frames = decode_clip(Path(video), {"": plan}, Views(how), plan.frames)[0][""][0]
        else:
            whole = torch.as_tensor(video)
            if whole.ndim != 4 or whole.shape[-1] != 3 or whole.dtype != torch.uint8:
                raise UserError(f"a video is a path or uint8 (T,H,W,3), not {whole.dtype} {tuple(whole.shape)}")
            if how.kind == "fps":
                raise UserError(f"frames are sampled as {how}, which needs a file with its rate")
            frames = whole[how.pick(len(whole), plan.frames, 0.0)[0]]
        made.append(prepare(frames, plan))
    return torch.cat(made)
