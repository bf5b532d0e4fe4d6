"""The page of all tables that bench/learning.py measured: docs/results/learning.md from the JSON files beside it.

python bench/learning_page.py --results docs/results
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from learning_figure import front, known
from learning_report import code_states

from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.log import say

Json = dict[str, Any]
TIMES = ("steps", "seconds_last_start", "cpu_seconds_last_start")
MAIN = ("linear", "probe", "shuffled", "skill", "rankme", "tokens", *TIMES)
CHOICE = ("validation", "validation_24", "regions_validation", "rankme", "tokens", "regions_tokens", "steps")
FRONT = ("validation", "validation_24", "flops_per_clip", "encode_ms", "train_ms", "rankme", "tokens")
DIGITS = {"rankme": 1, "tokens": 1, "regions_tokens": 1, "steps": 0, "seconds_last_start": 0}
DIGITS |= {"cpu_seconds_last_start": 0}
DIGITS |= {"skill": 2, "still_over_busy": 2, "flops_per_clip": 0, "encode_ms": 2, "train_ms": 2}


def cell(values: list[Any], digits: int) -> str:
    """Mean over seeds, and the seeds themselves where there are several."""
    known = [v for v in values if isinstance(v, (int, float))]
    if not known:
        return "–"
    mean = f"{float(np.mean(known)):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ({', '.join(f'{v:.{digits}f}' for v in known)})"


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def measures(arms: Json, columns: tuple[str, ...], first: str = "arm") -> list[str]:
    used = [c for c in columns if any(v is not None for arm in arms.values() for v in arm.get(c, []))]
    rows = [[name, *(cell(arm.get(c, []), DIGITS.get(c, 3)) for c in used)] for name, arm in arms.items()]
    return markdown([first, *(c.replace("_", " ") for c in used)], rows)


def how(about: Json) -> list[str]:
    length = f"{about['steps']} updates" if about["steps"] else f"{about['seconds']:.0f} s"
    return [
        f"`{about['command']}`, {about['date']}, {about['machine']}; {length} an arm on one core, planned by the speed "
        f"measured before it; {len(code_states(about['arms']))} state(s) of the code. Several seeds: mean (each "
        f"seed).{spread(about['arms'])}",
        "",
    ]


def spread(arms: Json) -> str:
    """How far seeds of one arm lie apart, in a sentence."""
    apart = [max(v) - min(v) for a in arms.values() if len(v := a.get("linear", [])) > 1 and None not in v]
    return f" Seeds of one arm differ by up to {max(apart):.3f}: a single one says little." if apart else ""


def main_tables(about: Json) -> list[str]:
    arms = about["arms"]
    out = [*how(about), f"{about['labels']} labels, chance {about['chance']:.3f}, test part.", ""]
    out += measures(arms, MAIN)
    gains = [[name, f"{mean:.3f}", f"{low:.3f} … {high:.3f}"] for name, (mean, low, high) in about["intervals"].items()]
    out += ["", f"Linear probe, {about['interval'].split(',')[0]}:", ""]
    out += markdown(["arm, or difference of pairs of one seed", "mean", "interval"], gains)
    flops = {name: arm["flops_per_clip"] for name, arm in arms.items() if any(arm.get("flops_per_clip", []))}
    out += ["", "FLOPs of encoding one clip: " + ", ".join(f"{n} {np.mean(v) / 1e6:.0f} M" for n, v in flops.items())]
    budgets = {name: arm for name, arm in arms.items() if any(arm.get("budget_tokens", []))}
    if budgets:
        numbers = next(iter(budgets.values()))["budget_tokens"][0]
        rows = [
            [name, *(cell([seed[k] for seed in arm["budget_linear"]], 3) for k in range(len(numbers)))]
            for name, arm in budgets.items()
        ]
        out += ["", "Linear probe with a budget of so many tokens, for which nothing was trained:", ""]
        out += markdown(["arm", *map(str, numbers)], rows)
    chosen = {name: arm for name, arm in arms.items() if "spearman_motion" in arm}
    out += [
        "",
        "Chunks of 100 held-out clips (ARI: adjusted Rand index against the object masks, per pixel; "
        "majority: of cells labelled by the masks themselves):",
        "",
    ]
    follows = (
        "spearman_motion",
        "still_over_busy",
        "ari",
        "ari_grid",
        "ari_regions",
        "ari_regions_grid",
        "ari_24",
        "ari_majority",
    )
    out += measures(chosen, (*follows, "ari_24_grid", "regions_linear", "regions_tokens"))
    return out


def front_table(about: Json) -> list[str]:
    arms = about["arms"]
    middle = {
        n: (float(np.mean(known(arm["encode_ms"]))), float(np.mean(known(arm["validation"]))))
        for n, arm in arms.items()
    }
    best = ", ".join(name for name in arms if name in front(middle))
    clips, worst = about["clips"]["parts"]["validation"][0], min(y for _, y in middle.values())
    half = 1.96 * (worst * (1 - worst) / clips) ** 0.5
    said = f"None is both cheaper to encode with and better, by the means over seeds, than: {best}. "
    said += f"By the {clips} clips alone an accuracy is known to ±{half:.3f} at worst, and seeds add to that."
    if costs := about.get("costs"):
        said += f" Costs: `{costs['command']}`, the least CPU time of {costs['rounds']} turns, one arm after another."
        said += " Not all seeds were timed." if any(None in arm["encode_ms"] for arm in arms.values()) else ""
    return [*how(about), *measures(arms, FRONT, "variant"), "", said]


def page(folder: Path) -> str:
    """All that is there, in the order main, equal steps, front, ablation, sweep."""
    lines = ["# What pretraining learns", "", "Made by bench/learning_page.py from the JSON files beside it."]
    parts = {
        "learning": ("All arms for the same time", main_tables),
        "learning_equal_steps": ("At equal steps", main_tables),
        "learning_front": ("Variants of the encoder", front_table),
        "learning_ablation": ("One change each", lambda about: [*how(about), *measures(about["arms"], CHOICE)]),
        "learning_sweep": ("Settings tried", lambda about: [*how(about), *measures(about["arms"], CHOICE)]),
    }
    for name, (title, tables) in parts.items():
        file = folder / f"{name}.json"
        if file.is_file():
            lines += ["", f"## {title}", "", *tables(read_json(file))]
            if (picture := folder / f"{name}.png").is_file():
                lines += ["", f"![{title}]({picture.name})"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    (args.results / "learning.md").write_text(page(args.results))
    say(f"-> {args.results / 'learning.md'}")


if __name__ == "__main__":
    main()
