"""SIGKILL at random moments of every long command, and again until it ends: does it end in the same bits?

    python bench/kills.py --out docs/results/kills.json --kills 4

Each line of kills_commands.py runs once undisturbed, then with kills at random moments between its first output (one
in four: any moment after half its start-up) and its measured end, by turns of the main process alone and of its whole
group. After a kill every result that lies there must be whole, and every lock free; then the same line is typed again,
until it ends, and its files are compared by sha256. Files that tell times are compared without them.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from kills_commands import REPOSITORY, Case, cases, make_library

from polyspace.utils.checkpoint_io import LEFT_OVER, read_json, write_json, write_text
from polyspace.utils.errors import UserError
from polyspace.utils.lock import hold_file
from polyspace.utils.log import say, table
from polyspace.utils.run_info import run_info

TIMES = {"run", "date", "seconds", "argv", "report", "seal", "environment", "cost", "wall_seconds", "cpu_seconds"}
NEVER = ("*.tfevents.*", "run.json", "*.run.json")  # nothing but when and how a run went


def start(case: Case, place: Path) -> subprocess.Popen:
    place.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "polyspace.cli", *shlex.split(case.line)]
    with open(place.parent / "said.txt", "w") as said:
        return subprocess.Popen(command, cwd=place, env=env, stdout=said, stderr=said, start_new_session=True)


def group(leader: int) -> list[int]:
    """Processes that live in a run's group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def files(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.is_file())


def undisturbed(case: Case, place: Path) -> tuple[float, float]:
    """Run it; seconds to the first output, and to the end."""
    begun, first = time.monotonic(), 0.0
    process = start(case, place)
    while process.poll() is None:
        if not first and any(place.iterdir()):
            first = time.monotonic() - begun
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    if process.returncode not in (0, 1):
        raise SystemExit(f"{case.name}: {(place.parent / 'said.txt').read_text()[-2000:]}")
    return first or seconds, seconds


def broken(place: Path) -> Iterator[str]:
    """Files that a reader would take for results, and that aren't whole; locks that nobody gives back."""
    from safetensors import safe_open

    for path in files(place):
        hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
        try:
            if "lock" in path.name:
                with open(path) as file:
                    assert hold_file(file), "is still held"
            if hidden:
                continue
            assert not path.name.endswith(".tmp"), "is a temporary file in sight"
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".safetensors":
                safe_open(path, "pt").__enter__()
            elif path.suffix in (".pt", ".npz", ".pt2"):
                assert zipfile.ZipFile(path).testzip() is None, "fails its sums"
            elif path.suffix == ".npy":
                np.load(path, mmap_mode="r")
            assert path.stat().st_size or path.suffix == ".jsonl" or "tfevents" in path.name, "is empty"
        except FileNotFoundError:
            continue
        except (AssertionError, UserError, ValueError, OSError, zipfile.BadZipFile) as error:
            yield f"{path.relative_to(place)}: {type(error).__name__} {error}"


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: strip(item) for key, item in value.items() if key not in TIMES}
    return [strip(item) for item in value] if isinstance(value, list) else value


def sums(place: Path, case: Case) -> dict[str, str]:
    """sha256 of each result file, of JSON without what tells times."""
    out = {}
    for path in files(place):
        name = path.relative_to(place).as_posix()
        if any(fnmatch.fnmatch(path.name, p) or fnmatch.fnmatch(name, p) for p in (*NEVER, *case.loose)):
            out[name] = "there"
            if "tfevents" in name:  # one file a process
                del out[name]
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            value = json.loads(data)
            if path.name == "bundle.json":
                value.pop("sha256")  # its own sum, of measured times too
            data = json.dumps(strip(value), sort_keys=True).encode()
        out[name] = hashlib.sha256(data).hexdigest()
    return out


def kill(process: subprocess.Popen, whole: bool) -> float:
    """Kill the main process, or all of its group; seconds until the last of the group is gone, at most 5."""
    (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    begun = time.monotonic()
    while group(process.pid) and time.monotonic() - begun < 5:
        time.sleep(0.02)
    return time.monotonic() - begun


def measure(case: Case, base: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill `kills` times, in as many rounds as that takes; each round ends undisturbed and is compared. All begin in
    one folder, emptied before: results may name absolute paths."""
    place = base / "w"
    first, end = undisturbed(case, place)
    expected = sums(place, case)
    found: dict[str, Any] = {"command": case.name, "first_output_s": first, "seconds": end, "files": len(expected)}
    landed: list[dict[str, Any]] = []
    unsound: list[str] = []
    differing: set[str] = set()
    starts = rounds = 0
    while len(landed) < kills or rounds == 0:
        shutil.rmtree(place)
        while True:
            process = start(case, place)
            starts += 1
            begun = time.monotonic()
            moment = rng.uniform(first / 2 if rng.random() < 0.25 else 0.95 * first, end)
            wanted = len(landed) < kills
            while process.poll() is None and not (wanted and time.monotonic() - begun >= moment):
                time.sleep(0.002)
            if process.poll() is not None:
                break
            whole = len(landed) % 2 == 1
            gone = kill(process, whole)
            there = files(place)
            newest = max(there, key=lambda p: p.stat().st_mtime_ns, default=None)
            at = {"at_s": moment, "whole_group": whole, "files": len(there), "group_gone_s": gone}
            landed.append(at | {"newest": newest.relative_to(place).as_posix() if newest else None})
            unsound += [f"kill {len(landed)}: {fault}" for fault in broken(place)]
        if process.returncode not in (0, 1):
            unsound.append(f"round {rounds} ended in: {(place.parent / 'said.txt').read_text().strip()[-300:]}")
        own = sums(place, case)
        differing |= {name for name in own.keys() | expected.keys() if own.get(name) != expected.get(name)}
        rounds += 1
    late = max((at["group_gone_s"] for at in landed), default=0.0)
    left = [n for n in differing if LEFT_OVER in n or "lock" in n]
    found |= {"kills": len(landed), "starts": starts, "rounds": rounds, "workers_gone_s": late, "left_over": left}
    return found | {"differing": sorted(differing), "unsound": unsound, "landed": landed}


def page(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    columns = ["command", "seconds", "kills", "of the group", "before any file", "starts", "rounds", "workers gone",
               "half-written or locked", "end"]  # fmt: skip
    rows = []
    for r in found["rows"]:
        groups, early = sum(k["whole_group"] for k in r["landed"]), sum(not k["files"] for k in r["landed"])
        verdict = "same bits" if not r["differing"] else f"differs: {', '.join(r['differing'][:4])}"
        row = [r["command"], f"{r['seconds']:.1f}", r["kills"], groups, early, r["starts"], r["rounds"]]
        rows.append([*map(str, row), f"{r['workers_gone_s']:.2f} s", str(len(r["unsound"])), verdict])
    total = sum(r["kills"] for r in found["rows"])
    said = (
        f"`python bench/kills.py --kills {found['settings']['kills']} --seed {found['settings']['seed']}`: {total} "
        "SIGKILLs at random moments. A round begins in an empty folder, is killed and typed again until it ends, and "
        "its files are compared with those of an undisturbed run. Times, dates and event files of TensorBoard are not "
        "compared. After each kill all results in sight were read and all locks tried."
    )
    return "\n".join(["# Killed at random moments", "", said, "", *table(rows, columns)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=4, help="of each command")
    parser.add_argument("--commands", nargs="+", help="these alone; what --out holds of others is kept")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kept = read_json(args.out)["rows"] if args.commands and args.out.is_file() else []
    rows = [row for row in kept if row["command"] not in args.commands]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        make_library(base)
        for case in cases(base):
            if args.commands and case.name not in args.commands:
                continue
            rng = random.Random(f"{args.seed} {case.name}")
            row = measure(case, base / "runs" / case.name.replace(" ", "_"), args.kills, rng)
            rows.append(json.loads(json.dumps(row).replace(scratch, "…")))
            told = [*row["differing"], *row["unsound"]]
            say(f"{case.name}: {row['kills']} kills in {row['rounds']} rounds; {'; '.join(told) or 'same bits'}")
            settings = {"kills": args.kills, "seed": args.seed}
            found = {"run": run_info("bench/kills.py") | {"argv": None}, "settings": settings, "rows": rows}
            write_json(args.out, found)
            write_text(args.out.with_suffix(".md"), page(found))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
