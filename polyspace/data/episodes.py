"""Robot episodes by layout. A new layout is a file with `build(root, split, camera, …)` and a line here."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyspace.data import droid_json, droid_raw, lerobot, rlds
from polyspace.data.episode_records import (
    EpisodeDataset,
    EpisodeRecord,
    Recorded,
    align,
    subsample,
    windows,
    with_room_for,
)
from polyspace.data.records import check_root
from polyspace.utils.errors import UserError, did_you_mean

EPISODES: dict[str, Callable[..., EpisodeDataset]] = {
    "annotation": droid_json.build,
    "droid": droid_raw.build,
    "lerobot": lerobot.build,
    "rlds": rlds.build,
}

__all__ = [
    "EPISODES",
    "EpisodeDataset",
    "EpisodeRecord",
    "Recorded",
    "align",
    "build_episodes",
    "find_layout",
    "subsample",
    "windows",
    "with_room_for",
]


def build_episodes(
    root: Path, layout: str = "auto", split: str | None = None, camera: str | None = None, **options: Any
) -> EpisodeDataset:
    """The episodes under `root`: of one split or all, with one camera or all; options that are None are not passed on.

    UserError for an unknown layout, split, camera or option, a path that leaves root, or no usable episode.
    """
    root = check_root(root, "a robot data set")
    name = find_layout(root) if layout == "auto" else layout
    if name not in EPISODES:
        raise UserError(f"--layout {name} is unknown{did_you_mean(name, [*EPISODES, 'auto'])}")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in inspect.signature(EPISODES[name]).parameters:
            raise UserError(f"{key} has no meaning for --layout {name}")
    return EPISODES[name](root, split=split, camera=camera, **given)


def find_layout(root: Path) -> str:
    """Which layout lies under `root`, told by the files that only it has."""
    if (root / "meta" / "info.json").is_file():
        return "lerobot"
    if (root / "annotation").is_dir():
        return "annotation"
    if next(root.rglob("metadata_*.json"), None):
        return "droid"
    if next(root.rglob("*.tfrecord*"), None):
        return "rlds"
    looked_for = "meta/info.json (lerobot), annotation/ (annotation), metadata_*.json (droid), *.tfrecord* (rlds)"
    raise UserError(f"--root {root} holds no robot data set that we know; looked for {looked_for}")
