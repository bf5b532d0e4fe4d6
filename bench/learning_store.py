"""Where bench/learning.py keeps each arm's result: a file in the working folder, and the JSON that they make together.

The JSON holds all that a finished arm needs, so that a run in an empty folder goes on from it.
"""

import argparse
from pathlib import Path
from typing import Any

from learning_arms import CLIPS, PARTS, Arm

import polyspace
from polyspace.utils.checkpoint_io import read_json, sha256_json, write_json

Result = dict[str, Any]


def identity(arm: Arm, args: argparse.Namespace) -> str:
    """Of what an arm's result depends on: another length, arm or set of clips is another result."""
    return sha256_json([arm.identity(), CLIPS, PARTS, args.seconds, args.steps])[:10]


def code_hash() -> str:
    """Of what trains and measures: results of different code should not stand in one table unnoticed."""
    bench = [Path(__file__).with_name(name) for name in ("learning.py", "learning_measure.py")]
    files = sorted(Path(polyspace.__file__).parent.rglob("*.py")) + bench
    return sha256_json([file.read_text() for file in files])[:10]


def arm_folder(work: Path, name: str, key: str, seed: int) -> Path:
    """Of an arm's checkpoints."""
    return work / f"{name.replace('/', '_')}_{key}" / f"seed{seed}"


def result_file(work: Path, name: str, key: str, seed: int) -> Path:
    return work / "results" / f"{name.replace('/', '_')}_{key}_{seed}.json"


def save(work: Path, result: Result) -> None:
    write_json(result_file(work, result["name"], result["identity"], result["seed"]), result)


def finished(group: dict[str, Arm], args: argparse.Namespace) -> dict[str, list[Result]]:
    """Per arm, in the group's order, the results that are there, in the order of seeds; no arm without one."""
    found = {}
    for name, arm in group.items():
        files = [result_file(args.work, name, identity(arm, args), s) for s in range(min(args.seeds, arm.seeds))]
        if rows := [read_json(file) for file in files if file.is_file()]:
            found[name] = rows
    return found


def unpack(about: dict[str, Any], work: Path) -> int:
    """Write the results that an earlier JSON holds where `work` lacks them; how many were written."""
    written = 0
    for name, arm in about["arms"].items():
        for k, (key, seed) in enumerate(zip(arm.get("identity", []), arm.get("seed", []), strict=True)):
            if not result_file(work, name, key, seed).is_file():
                save(work, {"name": name} | {measure: values[k] for measure, values in arm.items()})
                written += 1
    return written
