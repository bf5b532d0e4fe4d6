"""From the samples of bench/soak.py to its JSON, its page and its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soak_samples import trend

from polyspace.report.figures import plt, save_figure
from polyspace.utils.log import table

MEASURES = {
    "pss_mib": "memory of all its processes (PSS of what is not a mapped file), MiB",
    "rss_mib": "memory of the main process (RSS), MiB",
    "fds": "open files",
    "threads": "threads",
    "children": "child processes",
    "temp_files": "temporary files",
    "shm_mib": "/dev/shm, MiB (whole machine)",
}
AT_REST = {
    "rss_mib": "memory (RSS), MiB",
    "heap_mib": "memory asked for and not given back, MiB",
    "fds": "open files",
    "threads": "threads",
    "children": "child processes",
    "temp_files": "temporary files",
    "blocks": "blocks of Python's allocator",
    "objects": "Python objects",
}
CURVE = 400  # points that a curve keeps
BLOCKS = 24


def summary(samples: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]], passed: float) -> dict[str, Any]:
    """Of one kind: trends at work and at rest, and a thinned curve of each."""
    at_work, at_rest = [s["active_s"] for s in samples], [r["active_s"] for r in rounds]
    thin = samples[:: max(1, -(-len(samples) // CURVE))]
    shown = ("active_s", "pss_mib", "rss_mib", "fds", "threads")
    return {
        "active_minutes": round(at_work[-1] / 60, 2),
        "cpu_minutes": round((samples[-1]["cpu_s"] - samples[0]["cpu_s"]) / 60, 2),
        "rounds": len(rounds),
        "samples": len(samples),
        "passed_minutes": round(passed / 60, 2),
        "at_work": {key: rounded(trend(at_work, [s[key] for s in samples], BLOCKS)) for key in MEASURES},
        "at_rest": {key: rounded(trend(at_rest, [r[key] for r in rounds])) for key in AT_REST},
        "curve": {key: [round(s[key], 1) for s in thin] for key in shown},
        "rounds_curve": {key: [round(r[key], 1) for r in rounds] for key in ("active_s", *AT_REST)},
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in values.items()}


def rows(names: dict[str, str], trends: dict[str, dict[str, float]]) -> list[list[str]]:
    out = []
    for key, name in names.items():
        t = trends[key]
        if not t:
            out.append([name, "too few samples", *["–"] * 4])
            continue
        slope = f"{t['slope']:+.2f} ({t['low']:+.2f} to {t['high']:+.2f})"
        ends = [f"{t[k]:.1f}" for k in ("first_quarter", "last_quarter")]
        out.append([name, slope, *ends, f"{t['difference']:+.1f}", f"{t['highest']:.1f}"])
    return out


def soak_page(about: dict[str, Any]) -> str:
    short = " (cut short)" if about["minutes"] < about["asked"] else ""
    where, real = about["environment"], ", real files among them" if about["real_clips"] else ""
    lines = [
        "# Processes that live on: does anything grow?",
        "",
        f"`{about['command']}`, {where['cpus']} cores, Python {where['python']}, torch {where['torch']}.",
        "",
        f"{about['minutes']:.0f} of {about['asked']:.0f} minutes of work{short}. Two processes take turns and"
        " call the commands' own code again and again: one featurizes a folder"
        f" of clips (broken ones{real}) into fresh stores with two workers, the other trains fresh runs of all four"
        " phases. Slopes are an hour of that process's own work, with 95 % intervals, after the first 15 %"
        " of it; time in which it got no processor does not count. The"
        f" line at work goes through the medians of {BLOCKS} stretches, the one at rest through every round's end."
        " Quarters are medians of what follows the warm-up. safetensors leaves two blocks of 32 bytes behind for every"
        " tensor that it reads (0.5.3 to 0.8.0; Python's allocator counts them, the heap doesn't).",
    ]
    header = ["", "an hour", "first quarter", "last quarter", "difference", "highest"]
    for kind, k in about["kinds"].items():
        lines += ["", f"## {kind}", ""]
        lines += [
            f"{k['active_minutes']:.1f} minutes of work within {k['passed_minutes']:.0f} by the clock,"
            f" {k['cpu_minutes']:.1f} CPU minutes, {k['rounds']} rounds, {k['samples']} samples.",
            "",
            "At work:",
            "",
            *table(rows(MEASURES, k["at_work"]), header),
            "",
            "At rest, after each round:",
            "",
            *table(rows(AT_REST, k["at_rest"]), header),
        ]
    lines += ["", f"![memory over time]({about['picture']})", ""]
    return "\n".join(lines)


def soak_figure(about: dict[str, Any], path: Path) -> Path:
    """A panel a kind: memory of the whole tree and of the main process at work, and of the latter at rest."""
    figure, axes = plt.subplots(1, len(about["kinds"]), figsize=(5 * len(about["kinds"]), 3.2), squeeze=False)
    for axis, (kind, k) in zip(axes[0], about["kinds"].items(), strict=True):
        minutes = [s / 60 for s in k["curve"]["active_s"]]
        axis.plot(minutes, k["curve"]["pss_mib"], color="#9ecae1", linewidth=0.8, label="all processes (PSS)")
        axis.plot(minutes, k["curve"]["rss_mib"], color="#31a354", linewidth=0.8, label="main process (RSS)")
        rest = k["rounds_curve"]
        axis.plot([s / 60 for s in rest["active_s"]], rest["rss_mib"], "k.", markersize=3, label="main process at rest")
        axis.set(xlabel="minutes of work", ylabel="MiB", ylim=(0, None), title=kind)
        axis.legend(fontsize=7, frameon=False, loc="lower right")
    return save_figure(figure, path)
