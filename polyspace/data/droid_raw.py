"""Raw DROID: a folder an episode with `metadata_*.json`, `trajectory.h5` and `recordings/MP4/<serial>.mp4`.

States are `observation/robot_state/{cartesian_position (T,6), gripper_position (T)}` at 15 Hz: metres, extrinsic-xyz
Euler radians, gripper 0 (open) to 1. Cameras are named by their role in the metadata: left, right, wrist (or ext1,
ext2). Files are looked for in the episode's folder, since the metadata's own paths begin at different places.
Khazatsky et al. 2024, https://droid-dataset.github.io.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from polyspace.data.droid import COMMANDED_POSE
from polyspace.data.episode_records import (
    MAX_NUMBERS,
    Draft,
    EpisodeDataset,
    Recorded,
    Unfit,
    collect,
    read_item,
    table,
)
from polyspace.data.frames import VideoFrames
from polyspace.data.records import inside
from polyspace.utils.errors import UserError
from polyspace.utils.reading import FAULTS, brief, reads

FPS = 15.0
ROLES = ("left", "right", "wrist", "ext1", "ext2")


def build(root: Path, split: str | None = None, camera: str | None = None) -> EpisodeDataset:
    """Every episode below root; raw DROID has no splits. An episode's group is its lab and scene (else day)."""
    if split not in (None, "train"):
        raise UserError(f"--split {split}: raw DROID has no splits; all of it is `train`")
    files = sorted(root.rglob("metadata_*.json"))
    drafts = [(f.parent.relative_to(root).as_posix(), partial(_read, root, f)) for f in files]
    return collect(root.name, "droid", drafts, camera)


def _read(root: Path, file: Path) -> Draft:
    with reads(file, "episode metadata", Unfit):
        return _draft(root, file)


def _draft(root: Path, file: Path) -> Draft:
    meta = read_item(file, "episode metadata")
    folder = file.parent
    states, recorded = _trajectory(folder / "trajectory.h5")
    place, scene = folder.relative_to(root), meta.get("scene_id")
    session = folder.resolve().parent.name if scene is None else f"scene {scene}"
    return Draft(
        id=place.as_posix(),
        group=f"{meta.get('lab') or place.as_posix().split('/')[0]}/{session}",
        cameras={role: VideoFrames(path) for role, path in _videos(folder, meta).items()},
        states=states,
        fps=FPS,
        text=str(meta["current_task"]) if meta.get("current_task") else None,
        success=None if meta.get("success") is None else bool(meta["success"]),
        recorded=recorded,
    )


def _videos(folder: Path, meta: dict[str, Any]) -> dict[str, Path]:
    """Role -> file, by the name in `<role>_mp4_path` or the serial; a file with two roles keeps its first."""
    out: dict[str, Path] = {}
    for role in ROLES:
        named, serial = (str(meta.get(f"{role}_{key}") or "") for key in ("mp4_path", "cam_serial"))
        if not named and not serial:
            continue
        inside(folder, named or serial)
        path = inside(folder / "recordings" / "MP4", Path(named).name if named else f"{serial}.mp4")
        if path not in out.values():
            out[role] = path
    return out


def _trajectory(file: Path) -> tuple[torch.Tensor, Recorded | None]:
    try:
        import h5py
    except ImportError as error:
        raise UserError("raw DROID needs h5py: pip install 'polyspace[robot]'") from error

    def pair(group: Any, name: str) -> torch.Tensor:
        parts = []
        for key in ("cartesian_position", "gripper_position"):
            values = group[key] if isinstance(group, h5py.Group) else None
            if not isinstance(values, h5py.Dataset) or values.ndim == 0:
                raise Unfit(f"{file}: {name}/{key} is no array")
            if values.size > MAX_NUMBERS:  # as its head says; a few bytes can promise terabytes
                raise Unfit(f"{file}: {name}/{key} says that it has {values.size} numbers")
            parts.append(table(values[:], f"{name}/{key}"))
        if len(parts[0]) != len(parts[1]):
            raise Unfit(f"{file}: {name} has {len(parts[0])} poses and {len(parts[1])} gripper positions")
        return torch.cat(parts, 1)

    try:
        with h5py.File(file, "r") as h5:
            states = pair(h5["observation/robot_state"], "observation/robot_state")
            commands = h5.get("action")
            if not isinstance(commands, h5py.Group) or "cartesian_position" not in commands:
                return states, None
            return states, Recorded(pair(commands, "action"), COMMANDED_POSE)
    except UserError:
        raise
    except FAULTS as error:
        raise Unfit(f"{file} can't be read ({brief(error)})") from error
