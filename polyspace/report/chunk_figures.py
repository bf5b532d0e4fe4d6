"""Pictures of a pretraining run: its curves, and the chunks that the encoder chose."""

from collections.abc import Mapping, Sequence
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


def write_pictures(
    folder: Path, history: Sequence[Mapping[str, Any]], video: Tensor | None, seen: Mapping[str, Tensor]
) -> list[Path]:
    """Curves over updates, and where the encoder makes chunks, the chunks of some clips. `video` normalised
    (n,T,H,W,3), `seen` {"owner": (n,t,h,w), "chunks": (n,)} or empty."""
    made = []
    for name, (label, keys) in CURVES.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for key, title in keys.items():
            rows = [row for row in history if key in row]
            if rows:
                series[title] = ([row["step"] for row in rows], [row[key] for row in rows])
        if series:
            made.append(curves_figure(series, folder / name, x_label="update", y_label=label))
    if seen and video is not None:
        made.append(chunks_figure(video, seen["owner"], seen["chunks"], folder / "chunks.png"))
    return made


def chunks_figure(video: Tensor, owner: Tensor, chunks: Tensor, path: Path) -> Path:
    """Two rows a clip, one column a time step: the step's first frame, and the same with every chunk in a colour of its
    own; a place keeps its colour for as long as its chunk lasts."""
    clips, steps = owner.shape[:2]
    every = video.shape[1] // steps
    figure, axes = plt.subplots(2 * clips, steps, figsize=(1.25 * steps, 2.5 * clips), squeeze=False)
    rng = np.random.default_rng(0)
    palette = 0.25 + 0.75 * rng.random((int(owner.max()) + 1, 3))
    low, high = video.min().item(), video.max().item()
    for i in range(clips):
        for t in range(steps):
            frame = ((video[i, t * every] - low) / max(high - low, 1e-6)).cpu().numpy()
            cells = palette[owner[i, t].cpu().numpy()]
            scale = (frame.shape[0] // cells.shape[0], frame.shape[1] // cells.shape[1])
            tint = cells.repeat(scale[0], 0).repeat(scale[1], 1)
            for row, picture in ((2 * i, frame), (2 * i + 1, 0.35 * frame + 0.65 * tint)):
                axis = axes[row, t]
                axis.imshow(picture.clip(0, 1), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            if i == 0:
                axes[0, t].set_title(f"step {t}", fontsize=9)
        axes[2 * i, 0].set_ylabel("clip", fontsize=8)
        axes[2 * i + 1, 0].set_ylabel(f"{int(chunks[i])} chunks", fontsize=8)
    return save_figure(figure, path)
