"""Figures of docs/results/learning.json and of the chunks behind it.

python bench/learning_figure.py --json docs/results/learning.json
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from polyspace.data.moving import MovingClips, motion_of, normalise
from polyspace.models.vjepa.vit import HNetViT
from polyspace.report.chunk_figures import chunks_figure
from polyspace.report.figures import plt, save_figure
from polyspace.train.vjepa.looks import looks_at
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.log import say

TITLES = {
    "raw_pixels": "pixels",
    "random_tubelet": "tubelets, random init",
    "random_hnet": "H-Net, random init",
    "tubelet_vjepa": "tubelet V-JEPA",
    "hnet_fixed": "H-Net V-JEPA, fixed blocks",
    "hnet_vjepa": "H-Net V-JEPA",
    "hnet_fixed_rows": "H-Net V-JEPA, fixed blocks of rows",
    "supervised": "H-Net, trained on 20 000 labels",
}
COLOURS = dict(
    zip(TITLES, ("#888888", "#9ecae1", "#a1d99b", "#3182bd", "#fdae6b", "#31a354", "#fd8d3c", "#756bb1"), strict=True)
)


def known(values: list[Any]) -> list[float]:
    return [v for v in values if isinstance(v, (int, float))]


def learning_figure(about: dict[str, Any], path: Path) -> Path:
    """Left: linear accuracy of every arm, a dot a seed. Right: accuracy against tokens, with the budget curve."""
    arms = {name: about["arms"][name] for name in TITLES if name in about["arms"]}
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1.1, 1))
    for row, (name, arm) in enumerate(arms.items()):
        values = known(arm["linear"])
        bars.barh(row, sum(values) / len(values), color=COLOURS[name], height=0.6)
        bars.plot(values, [row] * len(values), "k.", markersize=5)
        controls = known(arm.get("shuffled", []))
        bars.plot(controls, [row] * len(controls), "rx", markersize=5)
    bars.set_yticks(range(len(arms)), [TITLES[n] for n in arms])
    bars.invert_yaxis()
    bars.axvline(about["chance"], color="grey", linestyle="--")
    bars.set(xlim=(0, 1), xlabel=f"linear probe on the mean token, {about['labels']} labels")
    bars.set_title("dots: seeds; red crosses: frames shuffled; dashed: chance", fontsize=9)
    for name, arm in arms.items():
        tokens, values = known(arm.get("tokens", [])), known(arm["linear"])
        if tokens and len(tokens) == len(values):
            curve.plot(tokens, values, "o", color=COLOURS[name], label=TITLES[name])
    for name, arm in arms.items():
        runs = zip(arm.get("budget_tokens", []), arm.get("budget_linear", []), strict=True)
        for number, (budgets, values) in enumerate(runs):
            label = f"{TITLES[name]}, given budgets" if number == 0 else None
            curve.plot(budgets, values, ".-", color=COLOURS[name], alpha=0.6, label=label)
    curve.axhline(about["chance"], color="grey", linestyle="--")
    curve.set(xlabel="tokens a clip (mean)", ylabel="linear probe", ylim=(0, 1))
    curve.legend(fontsize=7, frameon=False, loc="lower right")
    return save_figure(figure, path)


def front_figure(about: dict[str, Any], path: Path) -> Path:
    """Encoder variants after as many updates: accuracy against what encoding and training cost, a dot a seed; the line
    joins the means that none is both cheaper and better than."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    titles = {"encode_ms": "encoding a clip, ms of one core", "train_ms": "training on a clip, ms of one core"}
    for axis, (cost, title) in zip(axes, titles.items(), strict=True):
        points = {name: (known(arm[cost]), known(arm["validation"])) for name, arm in about["arms"].items()}
        middle = {name: (float(np.mean(x)), float(np.mean(y))) for name, (x, y) in points.items()}
        for number, (name, (_, y)) in enumerate(points.items()):
            colour = f"C{number}"
            axis.plot([middle[name][0]] * len(y), y, ".", color=colour, alpha=0.5)
            axis.plot(*middle[name], "o", color=colour, label=name.replace("_", " "))
        axis.plot(*zip(*sorted(middle[name] for name in front(middle)), strict=True), "-", color="grey", zorder=0)
        axis.set(xlabel=title)
    axes[0].set(ylabel=f"linear probe, validation part, {about['labels']} labels")
    axes[1].legend(fontsize=7, frameon=False, loc="lower right")
    return save_figure(figure, path)


def front(middle: dict[str, tuple[float, float]]) -> list[str]:
    """Names of those (cost, accuracy) that no other beats in both."""
    return [
        name
        for name, (cost, score) in middle.items()
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in middle.values())
    ]


@torch.no_grad()
def chunk_figures(encoder: HNetViT, clips: MovingClips, stem: Path, count: int = 100) -> list[Path]:
    """What the encoder makes of held-out clips: their chunks, and the number of chunks against how much moves."""
    video = clips.video[:count]
    encoded = encoder.encode(normalise(video))
    number, motion = encoded.valid.sum(1), motion_of(video)
    looks = looks_at(encoder, normalise(video[:4]), {"mean": [0.45] * 3, "std": [0.25] * 3})
    shown = save_figure(chunks_figure(looks), stem.with_name(f"{stem.name}_chunks.png"))
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    axis.plot(motion.tolist(), number.tolist(), ".", color=COLOURS["hnet_vjepa"])
    rank = spearmanr(number, motion).statistic
    axis.set(xlabel="mean change between frames (levels of 255)", ylabel="chunks", title=f"Spearman {rank:.2f}")
    return [shown, save_figure(figure, stem.with_name(f"{stem.name}_motion.png"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("docs/results/learning.json"))
    args = parser.parse_args()
    say(f"-> {learning_figure(read_json(args.json), args.json.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
