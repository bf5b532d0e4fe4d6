"""Pictures of what an encoder does with clips: the chunks that it chose, what it could not foresee, how many tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from polyspace.report.chunk_drawing import draw_chunks, palette, spread
from polyspace.report.figures import curves_figure, plt, save_figure
from polyspace.utils.chunk_map import ChunkMap
from polyspace.utils.looks_file import Looks

# name of the picture -> (label of the axis, metric -> words)
CURVES: dict[str, tuple[str, dict[str, str]]] = {
    "loss": ("loss", {"loss": "loss", "energy": "energy of hidden content"}),
    "skill": ("skill (0: knows the median, 1: perfect)", {"skill": "skill"}),
    "rank": ("effective rank of clip features", {"effective_rank": "effective rank"}),
    "tokens": ("tokens a clip", {"chunks": "chunks of a whole clip, mean"}),
}
MOST = 8  # columns
HIGH = 96  # pixels of the shorter side of a drawn frame, at least; at most twice that, or pages grow


def write_pictures(folder: Path, history: Sequence[Mapping[str, Any]], looks: Looks | None) -> list[Path]:
    """A run's curves over updates, and the chunks of some clips, as PNG files."""
    made = [save_figure(figure, folder / f"{name}.png") for name, figure in history_figures(history).items()]
    if looks is not None and looks.maps:
        made.append(save_figure(chunks_figure(looks), folder / "chunks.png"))
    return made


def history_figures(history: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """The curves of `CURVES` that the logged lines hold something of."""
    made = {}
    for name, (label, keys) in CURVES.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for key, title in keys.items():
            rows = [row for row in history if key in row and not row.get("eval")]
            if rows:
                series[title] = ([row["step"] for row in rows], [row[key] for row in rows])
        if series:
            made[name] = curves_figure(series, x_label="update", y_label=label)
    return made


def chunks_figure(looks: Looks) -> Figure:
    """A row of frames for each clip, and a row for each way of chunking it; one column a time step (its first frame),
    of many steps some. A chunk keeps its colour as long as it lasts; a ring marks the middle of each in the column of
    its step, its area how many cells it has."""
    ways = list(looks.maps)
    steps = looks.maps[ways[0]][0].owner.shape[0]
    columns = _columns(steps)
    n, rows = len(looks.frames), 1 + len(ways)
    figure, axes = plt.subplots(rows * n, len(columns), figsize=(1.25 * len(columns), 1.25 * rows * n), squeeze=False)
    for i, video in enumerate(looks.frames):
        frames = [large(video[t * len(video) // steps]) for t in columns]
        _row(axes[rows * i], frames, "clip")
        for axis, way in zip(axes[rows * i + 1 : rows * (i + 1)], ways, strict=True):
            chunks = looks.maps[way][i]
            colours = palette(chunks.tokens)
            drawn = [draw_chunks(f, chunks.owner[t], colours, fill=0.6) for f, t in zip(frames, columns, strict=True)]
            _row(axis, drawn, f"{chunks.tokens} {way}")
            _middles(dict(zip(columns, axis, strict=True)), chunks, frames[0].shape[:2])
    _name_steps(axes[0], columns)
    return figure


def mistakes_figure(looks: Looks) -> Figure:
    """For each clip its frames with one mask over them, and below how far each cell's prediction was off, on average
    over many masks."""
    assert looks.hidden is not None and looks.error is not None
    n, steps = looks.hidden.shape[:2]
    columns = _columns(steps)
    size = (1.25 * len(columns), 2.5 * n)
    figure, axes = plt.subplots(2 * n, len(columns), figsize=size, squeeze=False, layout="constrained")
    known = looks.error[np.isfinite(looks.error)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    image: Any = None
    for i, video in enumerate(looks.frames):
        frames = [_hide(large(video[t * len(video) // steps]), looks.hidden[i, t]) for t in columns]
        _row(axes[2 * i], frames, "one mask")
        for axis, t in zip(axes[2 * i + 1], columns, strict=True):
            image = axis.imshow(looks.error[i, t], cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        axes[2 * i + 1, 0].set_ylabel("error", fontsize=8)
    _name_steps(axes[0], columns)
    figure.colorbar(image, ax=axes, label="energy of the prediction", fraction=0.03, shrink=0.6)
    return figure


def _columns(steps: int) -> list[int]:
    """The steps that are shown: all, or some spread over them."""
    return (
        sorted({round(k * (steps - 1) / max(MOST - 1, 1)) for k in range(MOST)}) if steps > MOST else list(range(steps))
    )


def _name_steps(axes: NDArray, columns: Sequence[int]) -> None:
    for axis, t in zip(axes, columns, strict=True):
        axis.set_title(f"step {t + 1}", fontsize=9)


def motion_figure(counted: Mapping[str, Any]) -> Figure:
    """Tokens of clips against how much moves in them; title and line as the numbers say."""
    figure, axis = plt.subplots(figsize=(5, 3.4))
    axis.plot(counted["motion"], counted["tokens"], ".", color="#4878a8")
    axis.axhline(counted["cells"], color="grey", linestyle="--", label=f"tubelets: {counted['cells']}")
    title = ""
    if counted.get("spearman") is not None and np.isfinite(counted["spearman"]):
        low, high = counted["spearman_low"], counted["spearman_high"]
        title = (
            f"rank correlation {counted['spearman']:.2f}, 95 % [{low:.2f}, {high:.2f}], {len(counted['tokens'])} clips"
        )
    axis.set(xlabel="mean change between sampled frames (levels of 255)", ylabel="tokens a clip")
    axis.set_title(title, fontsize=9)
    axis.set_ylim(0, counted["cells"] * 1.08)
    axis.legend(fontsize=8)
    return figure


def large(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Small frames enlarged by a whole factor, so that lines and dots on them are finer than their pixels; large ones
    averaged down by one."""
    smaller = min(frame.shape[:2]) // HIGH
    if smaller > 1:
        rows, columns = (n // smaller for n in frame.shape[:2])
        blocks = frame[: rows * smaller, : columns * smaller].reshape(rows, smaller, columns, smaller, 3)
        return blocks.mean((1, 3)).round().astype(np.uint8)
    factor = max(1, -(-HIGH // min(frame.shape[:2])))
    return spread(frame, frame.shape[0] * factor, frame.shape[1] * factor)


def _hide(frame: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> NDArray[np.uint8]:
    out = frame.copy()
    out[spread(hidden, *frame.shape[:2])] = 128
    return out


def _row(axes: NDArray, frames: Sequence[NDArray[np.uint8]], word: str) -> None:
    for axis, frame in zip(axes, frames, strict=True):
        axis.imshow(frame, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    axes[0].set_ylabel(word, fontsize=8)


def _middles(axes: Mapping[int, Any], chunks: ChunkMap, shape: tuple[int, ...]) -> None:
    """A ring in the middle of each chunk, where the step nearest to it is shown."""
    steps, rows, columns = chunks.owner.shape
    at = np.clip(np.rint(chunks.centroids[:, 0]), 0, steps - 1).astype(int)
    x = (chunks.centroids[:, 2] + 0.5) * shape[1] / columns
    y = (chunks.centroids[:, 1] + 0.5) * shape[0] / rows
    for t, axis in axes.items():
        here = at == t
        area = 3 + 2 * chunks.sizes[here]
        axis.scatter(x[here], y[here], s=area, facecolor="none", edgecolor="black", linewidth=0.8)
