"""How long a command takes to say what it can do: the median of fresh processes, and what they import to do so.

    python bench/startup.py --out docs/results/startup.json

Files are in the page cache (one start of each is not counted) and .pyc files are there. Wall seconds say what a person
waits, CPU seconds what the start costs where the machine is shared.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from polyspace.cli import VERBS
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import say, table
from polyspace.utils.run_info import run_info

TARGETS = {"import polyspace": 0.2, "polyspace --help": 0.3}  # seconds
HEAVY = ("torch", "numpy", "transformers", "matplotlib", "av", "pydantic")


def line_of(name: str) -> list[str]:
    """The process of a row: an import, or the command line with its words."""
    code = "import polyspace" if name.startswith("import") else "import sys, polyspace.cli as c; sys.exit(c.main())"
    return [sys.executable, "-c", code, *([] if name.startswith("import") else name.split()[1:])]


def start(name: str) -> tuple[float, float]:
    """Wall and CPU seconds of one fresh process, which must end well."""
    begun = time.perf_counter()
    with subprocess.Popen(line_of(name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def imported(name: str) -> list[str]:
    """Which of the heavy packages a start imports."""
    head = "import atexit, sys; atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)));"
    python, flag, code, *words = line_of(name)
    done = subprocess.run([python, flag, head + code, *words], capture_output=True, text=True)
    return [package for package in HEAVY if package in done.stderr.split()]


def measure(repeats: int, verb_repeats: int, verbs: list[str]) -> dict[str, dict[str, Any]]:
    """Rows in rounds, so that a busy moment falls on all alike; what has a target starts `repeats` times, the rest
    `verb_repeats`."""
    names = [*TARGETS, *(f"polyspace {verb} --help" for verb in verbs)]
    heavy = {name: imported(name) for name in names}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(max(repeats, verb_repeats)):
        for name in (n for n in names if turn < (repeats if n in TARGETS else verb_repeats)):
            seconds[name].append(start(name))
    return {
        name: {
            "starts": len(runs),
            "wall_s": round(median(wall for wall, _ in runs), 3),
            "fastest_s": round(min(wall for wall, _ in runs), 3),
            "cpu_s": round(median(cpu for _, cpu in runs), 3),
            "imports": heavy[name],
        }
        for name, runs in seconds.items()
    }


def page(about: dict[str, Any]) -> str:
    where = about["environment"]
    rows = []
    for name, row in about["starts"].items():
        target = f"{TARGETS[name]:.1f}" if name in TARGETS else ""
        times = [str(row["starts"]), *(f"{row[key]:.2f}" for key in ("wall_s", "fastest_s", "cpu_s"))]
        rows.append([f"`{name}`", *times, target, ", ".join(row["imports"]) or "none"])
    header = ["fresh process", "starts", "median, s", "fastest, s", "CPU, s", "target, s", "heavy imports"]
    lines = [
        "# Start-up",
        "",
        f"`{about['command']}`: {where['cpus']} cores, Python {where['python']},"
        f" torch {where['torch']}. Slowest: `{about['slowest']}`.",
        "",
        *table(rows, header),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--verb_repeats", type=int, default=20)
    parser.add_argument("--verbs", nargs="*", default=list(VERBS))
    args = parser.parse_args()
    starts = measure(args.repeats, args.verb_repeats, args.verbs)
    slowest = max(starts, key=lambda name: starts[name]["cpu_s"])
    about = {"command": f"python bench/startup.py --out {args.out}", "slowest": slowest}
    about |= {"starts": starts, "environment": run_info("startup")["environment"]}
    write_json(args.out, about)
    write_text(args.out.with_suffix(".md"), page(about))
    say(page(about))


if __name__ == "__main__":
    main()
