"""Pictures of a pretraining run: its curves, and the chunks that the encoder chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyspace.report.figures import curves_figure, plt, save_figure

CURVES = {
    "loss.png": ("loss", {"loss": "loss", "energy": "energy of hidden content"}),
    "skill.png": ("skill (0: knows the median, 1: perfect)", {"skill": "skill"}),
    "rank.png": ("effective rank of clip features", {"effective_rank": "effective rank"}),
    "tokens.png": ("tokens a clip", {"chunks": "chunks of a whole clip, mean"}),
}


@dataclass(frozen=True)
class Look:
    """One way to chunk some clips: what its chunks are called, the chunk of each cell (n,t,h,w), their number (n,)."""

    word: str
    owner: Tensor
    number: Tensor


def write_pictures(
    folder: Path, history: Sequence[Mapping[str, Any]], video: Tensor | None, looks: Sequence[Look]
) -> list[Path]:
    """Curves over updates, and where the encoder makes chunks, the chunks of some clips: `video` normalised
    (n,T,H,W,3)."""
    made = []
    for name, (label, keys) in CURVES.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for key, title in keys.items():
            rows = [row for row in history if key in row]
            if rows:
                series[title] = ([row["step"] for row in rows], [row[key] for row in rows])
        if series:
            made.append(curves_figure(series, folder / name, x_label="update", y_label=label))
    if looks and video is not None:
        made.append(chunks_figure(video, looks, folder / "chunks.png"))
    return made


def chunks_figure(video: Tensor, looks: Sequence[Look], path: Path) -> Path:
    """A row of frames for each clip and a row for each look at it; one column a time step: the step's first frame, and
    the same with every chunk in a colour of its own, which a place keeps for as long as its chunk lasts."""
    clips, steps = looks[0].owner.shape[:2]
    every, rows = video.shape[1] // steps, 1 + len(looks)
    figure, axes = plt.subplots(rows * clips, steps, figsize=(1.25 * steps, 1.25 * rows * clips), squeeze=False)
    most = max(int(look.owner.max()) for look in looks) + 1
    palette = 0.25 + 0.75 * np.random.default_rng(0).random((most, 3))
    low, high = video.min().item(), video.max().item()
    for i in range(clips):
        for t in range(steps):
            frame = ((video[i, t * every] - low) / max(high - low, 1e-6)).cpu().numpy()
            pictures = [frame]
            for look in looks:
                cells = palette[look.owner[i, t].cpu().numpy()]
                scale = (frame.shape[0] // cells.shape[0], frame.shape[1] // cells.shape[1])
                pictures.append(0.35 * frame + 0.65 * cells.repeat(scale[0], 0).repeat(scale[1], 1))
            for axis, picture in zip(axes[rows * i : rows * (i + 1), t], pictures, strict=True):
                axis.imshow(picture.clip(0, 1), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            if i == 0:
                axes[0, t].set_title(f"step {t}", fontsize=9)
        words = ["clip", *(f"{int(look.number[i])} {look.word}" for look in looks)]
        for axis, word in zip(axes[rows * i : rows * (i + 1), 0], words, strict=True):
            axis.set_ylabel(word, fontsize=8)
    return save_figure(figure, path)
