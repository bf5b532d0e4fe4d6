"""From the results of bench/learning.py to its JSON and its table."""

import datetime
import json
import os
import platform
import sys
from typing import Any

import numpy as np
import torch
from learning_arms import CLASSES, CLIPS, LABELS, PARTS

from polyspace.utils.log import say, table
from polyspace.utils.metrics import seed_interval

# what every arm of a full measurement has, null where it has no meaning
MEASURES = ("linear", "probe", "skill", "rankme", "tokens", "flops_per_clip", "clips_per_s", "shuffled")
COLUMNS = {
    "validation": 3,
    "validation_24": 3,
    "linear": 3,
    "probe": 3,
    "shuffled": 3,
    "regions_validation": 3,
    "regions_linear": 3,
    "skill": 2,
    "rankme": 1,
    "tokens": 1,
    "regions_tokens": 1,
    "steps": 0,
}


def collect(results: dict[str, list[dict[str, Any]]], needed: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Per arm: a value per seed of every measure."""
    arms = {}
    for name, rows in results.items():
        keys = {k for row in rows for k, v in row.items() if isinstance(v, (int, float, str, list, type(None)))}
        arms[name] = {key: [row.get(key) for row in rows] for key in sorted((keys | set(needed)) - {"name"})}
    return arms


def note_states(arms: dict[str, dict[str, Any]]) -> None:
    """Say it where results were made by different code."""
    codes = code_states(arms)
    if len(codes) > 1:
        say(f"note: these results were made by {len(codes)} states of the code (arms.*.code)")


def code_states(arms: dict[str, dict[str, Any]]) -> set[str]:
    """The states of the code that trained and measured these arms."""
    return {code for arm in arms.values() for key in ("code", "code_at_start") for code in arm.get(key, []) if code}


def show(arms: dict[str, dict[str, Any]]) -> None:
    def mean(values: list[Any], digits: int) -> str:
        known = [v for v in values if isinstance(v, (int, float))]
        return f"{sum(known) / len(known):.{digits}f}" if known else "–"

    columns = {k: d for k, d in COLUMNS.items() if any(v is not None for a in arms.values() for v in a.get(k, []))}
    rows = [[n, *(mean(a.get(k, []), d) for k, d in columns.items())] for n, a in arms.items()]
    for line in table(rows, ["arm", *columns]):
        say(line)


def intervals(arms: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Mean, low and high over seeds of each arm's linear accuracy, and of the difference to every other arm of the same
    seeds for H-Net V-JEPA; only where there are several seeds."""
    values = {
        name: np.array(a["linear"], dtype=float) for name, a in arms.items() if None not in a.get("linear", [None])
    }
    ours = values.get("hnet_vjepa", np.array([]))
    others = {f"hnet_vjepa - {n}": ours - v for n, v in values.items() if n != "hnet_vjepa" and len(v) == len(ours)}
    out = {}
    for name, x in (values | others).items():
        if len(x) > 1:
            out[name] = seed_interval(x.tolist())
    return out


def summary(arms: dict[str, dict[str, Any]], seconds: float | None, steps: int | None, jobs: int) -> dict[str, Any]:
    """What the JSON holds: how it was made, and the arms."""
    about: dict[str, Any] = {"labels": LABELS, "supervised_labels": PARTS["pretrain"][0]}
    about |= {"seconds": seconds, "steps": steps, "chance": 1 / CLASSES}
    about |= {"shuffled": {name: a["shuffled"] for name, a in arms.items() if any(a.get("shuffled", []))}}
    about |= {"clips": CLIPS | {"parts": PARTS}, "threads_an_arm": 1, "arms_at_a_time": jobs, "arms": arms}
    about |= {
        "intervals": intervals(arms),
        "interval": "mean and 95 % t interval over seeds, linear probe on the test part",
    }
    about |= {"command": " ".join(["python", *sys.argv]), "date": datetime.date.today().isoformat()}
    about |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"}
    return json.loads(json.dumps(about))
