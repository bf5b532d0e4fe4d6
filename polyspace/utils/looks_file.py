"""Clips as an encoder saw them, kept for pictures: frames, chunks, what was hidden and how far predictions were off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyspace.utils.checkpoint_io import load_tensors, save_tensors
from polyspace.utils.chunk_map import ChunkMap
from polyspace.utils.errors import UserError
from polyspace.utils.metrics import spearman_interval
from polyspace.utils.reading import reads


@dataclass(frozen=True)
class Looks:
    """frames uint8 (n,T,H,W,3); for each way of chunking, by its name, one map a clip; hidden (n,t,h,w): one mask;
    error (n,t,h,w): mean energy of each cell's prediction over many masks, NaN where it was never asked for."""

    frames: NDArray[np.uint8]
    maps: Mapping[str, Sequence[ChunkMap]] = field(default_factory=dict)
    hidden: NDArray[np.bool_] | None = None
    error: NDArray[np.float32] | None = None


def motion_of(frames: NDArray[np.uint8]) -> float:
    """Mean absolute difference of successive frames (T,H,W,3), in levels of 255; 0 of a single one."""
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean()) if len(frames) > 1 else 0.0


def tokens_against_motion(tokens: Sequence[int], motion: Sequence[float], cells: int) -> dict[str, Any]:
    """Tokens of clips of so many cells beside how much changes in each, with their rank correlation and its 95 %
    bootstrap interval over clips, from eight clips on."""
    found: dict[str, Any] = {"tokens": list(tokens), "motion": list(motion), "cells": cells}
    if len(tokens) >= 8 and len(set(tokens)) > 1 and len(set(motion)) > 1:
        pairs = spearman_interval(torch.tensor(motion), torch.tensor(tokens, dtype=torch.float32))
        found |= dict(zip(("spearman", "spearman_low", "spearman_high"), pairs, strict=True))
    return found


def save_looks(path: Path, looks: Looks) -> Path:
    """Write atomically, as safetensors."""
    arrays: dict[str, NDArray] = {"frames": looks.frames}
    for name, maps in looks.maps.items():
        for i, one in enumerate(maps):
            arrays |= one.arrays(f"maps/{name}/{i}/")
    for key in ("hidden", "error"):
        value = getattr(looks, key)
        if value is not None:
            arrays[key] = value
    save_tensors(path, {key: torch.tensor(value) for key, value in arrays.items()})
    return path


def load_looks(path: Path) -> Looks:
    """What `save_looks` wrote; UserError for anything else."""
    tensors = load_tensors(path, "file of looks")
    with reads(path, "file of looks"):
        arrays = {key: value.numpy() for key, value in tensors.items()}
        frames = arrays["frames"]
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3 or not frames.size:
            raise UserError(f"file of looks {path} has frames of {frames.dtype} {frames.shape}, not uint8 (n,T,H,W,3)")
        names = list(dict.fromkeys(key.split("/")[1] for key in arrays if key.startswith("maps/")))
        maps = {name: [ChunkMap.from_arrays(arrays, f"maps/{name}/{i}/") for i in range(len(frames))] for name in names}
        looks = Looks(frames, maps, arrays.get("hidden"), arrays.get("error"))
        _check(looks)
    return looks


def _check(looks: Looks) -> None:
    """ValueError where parts don't fit each other."""
    clips = len(looks.frames)
    for one in (m for maps in looks.maps.values() for m in maps):
        same = one.owner.ndim == 3 and one.owner.shape == one.prob.shape and one.owner.size > 0
        if not same or one.centroids.shape != (one.tokens, 3) or one.sizes.ndim != 1:
            raise ValueError("a chunk map's parts differ in shape")
        if one.owner.dtype != np.int64 or one.owner.min() < 0 or one.owner.max() >= one.tokens:
            raise ValueError("a chunk map names chunks that it does not have")
    for part in (looks.hidden, looks.error):
        if part is not None and (part.ndim != 4 or len(part) != clips or not part.size):
            raise ValueError(f"a part of shape {part.shape} does not go with {clips} clips")
    if looks.hidden is not None and looks.error is not None and looks.hidden.shape != looks.error.shape:
        raise ValueError(f"a mask of shape {looks.hidden.shape} does not go with errors of {looks.error.shape}")
