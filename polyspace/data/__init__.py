"""Data sets by name. A new one is a file with `build(root, split, …) -> VideoDataset` and a line here."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyspace.data import diving48, hmdb51, ssv2, videofolder
from polyspace.data.records import SPLITS, ClipRecord, VideoDataset
from polyspace.utils.errors import UserError, did_you_mean

DATASETS: dict[str, Callable[..., VideoDataset]] = {
    "hmdb51": hmdb51.build,
    "diving48": diving48.build,
    "ssv2": ssv2.build,
    "videofolder": videofolder.build,
}
_FLAGS = {"list_file": "--list", "fold": "--fold", "annotations": "--annotations"}

__all__ = ["DATASETS", "ClipRecord", "VideoDataset", "build_dataset"]


def build_dataset(name: str, root: Path, split: str, **options: Any) -> VideoDataset:
    """The data set `name` under `root`; options left at None are not passed on, unknown ones are a UserError."""
    if name not in DATASETS:
        raise UserError(f"--dataset {name} is unknown{did_you_mean(name, DATASETS)}")
    if split not in SPLITS:
        raise UserError(f"--split {split} is unknown{did_you_mean(split, SPLITS)}")
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(DATASETS[name]).parameters
    for key in given:
        if key not in known:
            raise UserError(f"{_FLAGS.get(key, key)} has no meaning for --dataset {name}")
    made = root / "synthetic"
    if made.is_dir() and not (made / "truth.json").is_file():
        raise UserError(f"the generated clips under {root} are not finished; run the line that makes them again")
    return DATASETS[name](root, split, **given)
