"""Sections that look into a model: its chunks over frames, its mistakes, its tokens against motion, its plans."""

from pathlib import Path
from typing import Any

from polyspace.report.chunk_figures import chunks_figure, mistakes_figure, motion_figure
from polyspace.report.figures import plans_figure
from polyspace.report.html import Page
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.looks_file import Looks, load_looks


def looks_section(page: Page, folder: Path, command: str) -> None:
    """Chunks over frames, a mask and mistakes, tokens against motion."""
    if (folder / "looks.safetensors").is_file():
        looks = load_looks(folder / "looks.safetensors")
        if looks.maps:
            page.subheading("Chunks over frames")
            page.figure(chunks_figure(looks), CHUNKS_CAPTION, command, chunk_facts(looks), "chunks")
        if looks.error is not None and looks.hidden is not None:
            page.subheading("What could not be foreseen")
            data = {"error": [[None if x != x else x for x in e.ravel().tolist()] for e in looks.error]}
            page.figure(mistakes_figure(looks), MISTAKES_CAPTION, command, data, "mistakes")
    if (folder / "tokens.json").is_file():
        motion_section(page, read_json(folder / "tokens.json", "token counts"), command)


CHUNKS_CAPTION = (
    "Each chunk has a colour that a place keeps as long as its chunk lasts; white lines part chunks, and a ring marks "
    "the middle of each, the larger the more cells it has."
)
MISTAKES_CAPTION = (
    "Grey: hidden by one mask. Below: how far predictions of each cell were off, on average over many masks; blank "
    "where no mask asked."
)


def motion_section(page: Page, counted: dict[str, Any], command: str) -> None:
    page.subheading("Tokens against motion")
    page.figure(
        motion_figure(counted),
        "One dot a clip; the dashed line is how many tokens fixed tubelets would be.",
        command,
        counted,
        "tokens",
    )


def chunk_facts(looks: Looks) -> dict[str, Any]:
    """Number, middles and sizes of the chunks of each clip, for each way."""
    return {
        way: [{"tokens": m.tokens, "centroids": m.centroids.tolist(), "sizes": m.sizes.tolist()} for m in maps]
        for way, maps in looks.maps.items()
    }


def plans_section(page: Page, plans: dict[str, Any], command: str) -> None:
    """Planned beside true trajectories of held-out windows, and how far apart they end."""
    page.subheading("Planned against true trajectories")
    named = {
        "miss": "planned",
        "miss_other_goal": "planned for another episode's goal",
        "miss_mean_action": "the mean action of training",
        "miss_no_action": "no action",
    }
    page.text(
        f"From the first frame of {len(plans['windows'])} held-out windows, actions were searched (CEM) whose "
        "predicted end is like the last frame. Distance of their sum from that of the actions that were taken, in "
        "standard deviations of an action:"
    )
    page.table(
        [[words, f"{plans[key]:.2f}"] for key, words in named.items() if key in plans], ["actions", "mean distance"]
    )
    if "difference_high" in plans:
        low, high = plans["difference_low"], plans["difference_high"]
        verdict = "the goal is used" if high < 0 else "plans are farther off" if low > 0 else "no difference shown"
        page.text(
            f"Planned − planned for another goal, 95 % interval over episodes: [{low:+.2f}, {high:+.2f}]: {verdict}."
        )
    page.figure(plans_figure(plans), "Sums of actions from each window's start.", command, plans, "plans")
