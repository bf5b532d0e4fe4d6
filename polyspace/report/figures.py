"""Figures from plain numbers: axes named, with units; as PNG files, or as SVG that takes the page's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from polyspace.utils.checkpoint_io import atomic_file

WATERMARK = "identity stand-in"
INK = "#010203"  # black to the eye; in an SVG it becomes the colour of the page's text
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_settings: Any = matplotlib.rcParams
_settings.update(dict.fromkeys(INKED, INK) | {"legend.framealpha": 0, "text.parse_math": False})


def save_figure(figure: Figure, path: Path, watermark: bool = False) -> Path:
    """Write a figure as PNG, atomically, and close it."""
    _mark(figure, watermark)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def svg_figure(figure: Figure, name: str, watermark: bool = False) -> str:
    """A figure as an `<svg>` element without a background, and close it; `name` keeps its ids apart from others'."""
    _mark(figure, watermark)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=110, bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for tag in ("metadata", "style"):  # its style would be that of the whole page, which has the same for figures
        text = re.sub(rf"<{tag}\b.*?</{tag}>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' id="image[0-9a-f]+"', "", text)  # alike for alike images, and nothing refers to them
    key = re.sub(r"\W+", "_", name)
    text = re.sub(r'\bid="', f'id="{key}_', text)
    return re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{key}_", text)


def _mark(figure: Figure, watermark: bool) -> None:
    if watermark:
        outline = [withStroke(linewidth=3, foreground="white", alpha=0.5)]
        place: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 28, "path_effects": outline}
        figure.text(0.5, 0.5, WATERMARK, fontsize=44, color="red", alpha=0.5, **place)


def confusion_figure(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Rows are true classes, columns predicted ones, colour the share of the row; classes without clips stay blank."""
    matrix = np.asarray(counts, dtype=float)
    present = matrix.sum(1) > 0
    share = np.full_like(matrix, np.nan)
    share[present] = matrix[present] / matrix[present].sum(1, keepdims=True)
    side = min(14.0, max(4.5, 0.24 * len(classes) + 2))
    figure, axis = plt.subplots(figsize=(side + 1, side))
    image = axis.imshow(share, cmap="viridis", vmin=0, vmax=1)
    ticks = np.arange(len(classes))
    size = 8 if len(classes) <= 60 else 5
    axis.set_xticks(ticks, classes, rotation=90, fontsize=size)
    axis.set_yticks(ticks, classes, fontsize=size)
    axis.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.colorbar(image, ax=axis, label="share of the true class's clips", fraction=0.046)
    if len(classes) <= 16:
        for i, j in np.argwhere(matrix > 0):
            colour = "black" if share[i, j] > 0.6 else "white"
            axis.text(j, i, f"{int(matrix[i, j])}", ha="center", va="center", fontsize=8, color=colour)
    return figure


def accuracy_figure(heads: Mapping[str, Mapping[str, Any]], chance: float) -> Figure:
    """Top-1 of each head with its 95 % interval, and the chance level."""
    names = list(heads)
    values = np.array([heads[n]["top1"] for n in names])
    low, high = (np.array([heads[n]["top1_ci"][k] for n in names]) for k in (0, 1))
    figure, axis = plt.subplots(figsize=(5.5, 0.7 * len(names) + 1.4))
    errors = np.abs(np.stack([values - low, high - values]))
    axis.barh(names, values, xerr=errors, capsize=4, ecolor=INK, color="#4878a8", height=0.55)
    axis.axvline(chance, color="grey", linestyle="--", label=f"chance {chance:.3f}")
    axis.set(xlabel="top-1 accuracy (95 % bootstrap interval over clips)", xlim=(0, 1))
    axis.invert_yaxis()
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, frameon=False)
    return figure


def cka_figure(names: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """Debiased CKA of every pair of spaces, with its number in each cell."""
    matrix = np.asarray(values, dtype=float)
    side = 0.75 * len(names) + 2
    figure, axis = plt.subplots(figsize=(side + 1, side))
    image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    ticks = np.arange(len(names))
    axis.set_xticks(ticks, names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(ticks, names, fontsize=8)
    for i, j in np.ndindex(matrix.shape):
        colour = "black" if matrix[i, j] > 0.6 else "white"
        axis.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axis, label="debiased linear CKA", fraction=0.046)
    return figure


def curves_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
) -> Figure:
    """Lines by name: (x values, y values)."""
    figure, axis = plt.subplots(figsize=(6.5, 3.4))
    for name, (x, y) in series.items():
        axis.plot(x, y, label=name, linewidth=1.5)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def labels_figure(points: Sequence[Mapping[str, Any]], chance: float) -> Figure:
    """Top-1 of each head over the number of labelled clips, with its interval over seeds."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    clips = [p["clips"] for p in points]
    for name in points[0]["heads"]:
        mean, low, high = np.array([p["heads"][name]["top1"] for p in points]).T
        (line,) = axis.plot(clips, mean, marker="o", label=name)
        axis.fill_between(clips, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.axhline(chance, color="grey", linestyle=":", label="chance")
    axis.set(xscale="log", xlabel="labelled training clips", ylabel="top-1 accuracy", ylim=(0, 1))
    axis.set_xticks(clips, [str(n) for n in clips])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure


def series_figure(
    rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], x_label: str, y_label: str, held_out: bool = True
) -> Figure | None:
    """Logged lines as curves, {metric: words}, evaluations left out unless `held_out`; None where no line holds any."""
    used = [row for row in rows if held_out or not row.get("eval")]
    series = {
        words: ([row["step"] for row in used if key in row], [row[key] for row in used if key in row])
        for key, words in keys.items()
        if any(key in row for row in used)
    }
    return curves_figure(series, x_label=x_label, y_label=y_label) if series else None


def plans_figure(plans: Mapping[str, Any], most: int = 8) -> Figure:
    """Sums of the actions taken and planned, along the two dims that were used most, from the origin."""
    windows = plans["windows"][:most]
    taken = [np.cumsum(np.asarray(w["taken"]), 0) for w in windows]
    planned = [np.cumsum(np.asarray(w["planned"]), 0) for w in windows]
    order = np.argsort([-float(np.abs(np.stack(taken)[..., d]).mean()) for d in range(taken[0].shape[1])])
    x, y = sorted((int(order[0]), int(order[1] if len(order) > 1 else order[0])))
    columns = min(4, len(windows))
    rows = -(-len(windows) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.3 * columns, 2.2 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis, a, b in zip(axes.flat, taken, planned, strict=False):
        for path, colour, word, mark in ((a, "#4878a8", "taken", "o"), (b, "#c2571a", "planned", "^")):
            whole = np.vstack([np.zeros(path.shape[1]), path])
            axis.plot(whole[:, x], whole[:, y], f"{mark}-", color=colour, markersize=3, label=word)
        axis.plot(0, 0, ".", color=INK, markersize=6)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(windows) :]:
        axis.axis("off")
    figure.supxlabel(f"sum of action {x} (its own units)", fontsize=8)
    figure.supylabel(f"sum of action {y}", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def layers_figure(names: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """CKA of all layers of all backbones: a square a pair, lines between backbones. Names are "backbone number"."""
    matrix = np.asarray(values, dtype=float)
    side = min(9.0, max(4.0, 0.16 * len(names) + 2))
    figure, axis = plt.subplots(figsize=(side + 1, side))
    image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    owners = [name.rpartition(" ")[0] for name in names]
    starts = [i for i, owner in enumerate(owners) if i == 0 or owners[i - 1] != owner]
    ends = [*starts[1:], len(owners)]
    for start in starts[1:]:
        axis.axhline(start - 0.5, color="white", linewidth=1)
        axis.axvline(start - 0.5, color="white", linewidth=1)
    middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    labels = [f"{owners[a]} 1–{b - a}" for a, b in zip(starts, ends, strict=True)]
    axis.set_xticks(middles, labels, fontsize=8, rotation=30, ha="right")
    axis.set_yticks(middles, labels, fontsize=8)
    axis.set(xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=axis, label="debiased linear CKA", fraction=0.046)
    return figure
