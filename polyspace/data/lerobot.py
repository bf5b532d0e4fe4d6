"""LeRobot data sets (v2.1, v3): parquet tables and videos where the templates of meta/info.json say.

The templates are followed, not the version. A file may hold one episode (v2.1) or several (v3), whose ranges of rows
and of seconds stand in meta/episodes. States are `observation.state.cartesian_position` and `.gripper_position`, or
those columns of `observation.state` that info.json calls x, y, z, roll, pitch, yaw, gripper, or what `state` names.
https://github.com/huggingface/lerobot; its format is tested here on files written for the test.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyspace.data.episode_records import Draft, EpisodeDataset, Recorded, Unfit, collect, table
from polyspace.data.frames import FrameSource, VideoFrames
from polyspace.data.lerobot_meta import Meta, read_meta, read_parquet
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.reading import reads

PAIR = ("observation.state.cartesian_position", "observation.state.gripper_position")
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
SUCCESS = ("next.success", "is_episode_successful")
Columns = dict[str, list[int] | None]  # column -> which of its numbers; None: all


def build(
    root: Path, split: str | None = None, camera: str | None = None, state: tuple[str, ...] | None = None
) -> EpisodeDataset:
    """Episodes of a split of info.json, or of all. `state` names columns that join to 7 numbers. Cameras are the video
    features; the group of an episode is itself, since the format does not say what was recorded together."""
    meta = read_meta(root)
    with reads(root / "meta" / "info.json", "LeRobot info"):
        columns = _state_columns(meta, state)
    if not meta.cameras:
        raise UserError(f"{root / 'meta' / 'info.json'}: no feature is a video")
    embedded = [key for key, feature in meta.features.items() if feature.get("dtype") == "image"]
    notes = [f"images inside the tables are not read: {', '.join(embedded)}"] if embedded else []
    drafts = [(_id(i), partial(_draft, root, meta, columns, i)) for i in meta.chosen(split)]
    return collect(root.name, "lerobot", drafts, camera, notes)


def _id(index: int) -> str:
    return f"episode_{index:06d}"


def _state_columns(meta: Meta, state: tuple[str, ...] | None) -> Columns:
    """Where the 7 numbers of a state stand; UserError where info.json does not tell."""
    numbers = [key for key in meta.features if key.startswith("observation.state")]
    if state is None and all(key in meta.features for key in PAIR):
        state = PAIR
    if state is not None:
        for key in state:
            if key not in meta.features:
                raise UserError(f"meta/info.json has no feature {key}{did_you_mean(key, meta.features)}")
        return dict.fromkeys(state)
    names = _names(meta.features.get("observation.state", {}))
    if all(axis in names for axis in AXES):
        return {"observation.state": [names.index(axis) for axis in AXES]}
    raise UserError(
        f"meta/info.json does not say which columns are {', '.join(AXES)} (observation.state has "
        f"{', '.join(names) or 'no names'}); name them with state= (of {', '.join(numbers) or 'none'})"
    )


def _names(feature: Mapping[str, Any]) -> list[str]:
    """Names of a feature's numbers: a list, or a dictionary with one."""
    names = feature.get("names") or []
    if isinstance(names, Mapping):
        names = next(iter(names.values()), [])
    return [str(name).lower() for name in names] if isinstance(names, list) else []


def _draft(root: Path, meta: Meta, columns: Columns, index: int) -> Draft:
    with reads(root / "meta" / "info.json", f"what is told of episode {index} by", Unfit):
        return _read(root, meta, columns, index)


def _read(root: Path, meta: Meta, columns: Columns, index: int) -> Draft:
    row = meta.episodes[index]
    rows = _table(meta.data_file(root, index), (*columns, "action"), index)
    if "length" in row and rows.num_rows != row["length"]:
        raise Unfit(f"its table has {rows.num_rows} rows, meta/episodes says {row['length']}")
    tasks = row.get("tasks") or _task_of(rows, meta)
    success = next((key for key in SUCCESS if key in rows.column_names), None)
    return Draft(
        id=_id(index),
        group=_id(index),
        cameras={key: _video(root, meta, index, key) for key in meta.cameras},
        states=torch.cat([_numbers(rows, key, which) for key, which in columns.items()], 1),
        fps=meta.fps,
        text=str(tasks[0]) if tasks and tasks[0] else None,
        success=any(bool(v) for v in rows.column(success).to_pylist()) if success else None,
        recorded=_recorded(rows, meta),
    )


def _table(file: Path, wanted: tuple[str, ...], index: int) -> Any:
    """The rows of one episode, in order of frames; Unfit where the file is absent, damaged or the frames have gaps."""
    try:
        stamp = file.stat().st_mtime_ns if file.is_file() else 0
        whole = _whole(file, stamp, (*wanted, *SUCCESS, "episode_index", "frame_index", "task_index"))
    except UserError as error:
        raise Unfit(str(error)) from error
    import pyarrow.compute

    for key in ("episode_index", "frame_index"):
        if key not in whole.column_names:
            raise Unfit(f"{file} has no column {key}")
    rows = whole.filter(pyarrow.compute.equal(whole["episode_index"], index)).sort_by("frame_index")
    if rows["frame_index"].to_pylist() != list(range(rows.num_rows)):
        raise Unfit(f"{file}: the frame_index of its {rows.num_rows} rows does not run from 0 without a gap")
    return rows


@lru_cache(maxsize=1)
def _whole(file: Path, stamp: int, columns: tuple[str, ...]) -> Any:
    """The last table stays, since episodes of one file follow each other."""
    return read_parquet(file, list(columns))


def _numbers(rows: Any, key: str, which: list[int] | None) -> Tensor:
    if key not in rows.column_names:
        raise Unfit(f"its table has no column {key}")
    values = table(rows.column(key).to_pylist(), key)
    if which is None:
        return values
    if len(values) and max(which) >= values.shape[1]:
        raise Unfit(f"its {key} has {values.shape[1]} numbers, info.json names more")
    return values[:, which]


def _recorded(rows: Any, meta: Meta) -> Recorded | None:
    if "action" not in rows.column_names:
        return None
    names = ", ".join(_names(meta.features.get("action", {}))) or "no names"
    meaning = f"`action` as recorded ({names}); LeRobot does not say whether it is a target or a change"
    return Recorded(_numbers(rows, "action", None), meaning)


def _task_of(rows: Any, meta: Meta) -> list[str]:
    if "task_index" not in rows.column_names or not rows.num_rows:
        return []
    task = meta.tasks.get(rows["task_index"][0].as_py())
    return [task] if task else []


def _video(root: Path, meta: Meta, index: int, key: str) -> FrameSource:
    """The video, or the range of one between two times, which must be whole frames."""
    row, path = meta.episodes[index], meta.video_file(root, index, key)
    times = [row.get(f"videos/{key}/{end}_timestamp") for end in ("from", "to")]
    if None in times:
        return VideoFrames(path, fps=meta.fps)
    places = [float(time) * meta.fps for time in times if time is not None]
    start, stop = (round(place) for place in places)
    if max(abs(p - round(p)) for p in places) > 0.1 or not 0 <= start < stop:
        raise Unfit(f"its range in {path.name} is frames {places[0]:.2f} to {places[1]:.2f}, no whole ones")
    return VideoFrames(path, start, stop, meta.fps)
