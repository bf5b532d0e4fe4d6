"""Generated robot episodes in the raw DROID layout: metadata JSON, trajectory.h5, one mp4 a camera, 7-D actions.

The picture is a gripper over a table: x and y move it, z sizes it, yaw turns its fingers, the gripper closes them.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyspace.data.droid import actions_from_states
from polyspace.data.render import ground, paint
from polyspace.data.video_writer import write_video
from polyspace.utils.checkpoint_io import atomic_file, write_text
from polyspace.utils.errors import UserError

FPS, FRAMES = 15.0, 48
CAMERAS = {"left": 0.0, "right": math.pi / 2, "wrist": math.pi}  # each sees the table turned by this angle


def draw_states(rng: np.random.Generator, frames: int = FRAMES) -> NDArray[np.float64]:
    """A smooth walk of states (T,7): metres, extrinsic-xyz Euler radians (yaw passes ±π), gripper 0..1."""
    knots = rng.uniform(-1, 1, (6, 7))
    knots[:, 5] = np.cumsum(rng.uniform(0.2, 0.9, 6)) + rng.uniform(1, 3)
    t = np.linspace(0, 5, frames)
    low = np.floor(t).clip(0, 4).astype(int)
    mix = (t - low)[:, None]
    mix = mix * mix * (3 - 2 * mix)
    walk = knots[low] * (1 - mix) + knots[low + 1] * mix
    states = np.empty_like(walk)
    states[:, :3] = np.array([0.5, 0.0, 0.3]) + 0.15 * walk[:, :3]
    states[:, 3] = _wrap(math.pi + 0.2 * walk[:, 3])
    states[:, 4] = 0.2 * walk[:, 4]
    states[:, 5] = _wrap(walk[:, 5])
    states[:, 6] = 0.5 + 0.5 * walk[:, 6]
    return states


def _wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def draw_video(
    rng: np.random.Generator, states: NDArray[np.float64], height: int, width: int, turn: float
) -> NDArray[np.uint8]:
    """What a camera turned by `turn` sees: uint8 (T,H,W,3)."""
    canvas = ground(rng, len(states), height, width)
    x, y = (states[:, 0] - 0.5) / 0.2, states[:, 1] / 0.2
    x, y = math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y
    size = 0.16 + 0.3 * (states[:, 2] - 0.15)
    paint(canvas, (x, y), "ring", size, (0.8, 0.8, 0.85))
    reach = size * (0.4 + 0.6 * states[:, 6])
    for side in (-1, 1):
        yaw = states[:, 5] + turn
        tip = (x + side * reach * np.cos(yaw), y + side * reach * np.sin(yaw))
        paint(canvas, tip, "disc", 0.35 * size, (0.95, 0.6, 0.2) if side > 0 else (0.2, 0.6, 0.95))
    canvas += rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def write_episode(out: Path, seed: int, number: int, height: int, width: int) -> dict[str, Any]:
    """One episode folder; returns its entry of truth.json."""
    rng = np.random.default_rng([seed, 7, number])
    states = draw_states(rng)
    name = f"Sat_Jan__1_{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}_2022"
    relative = Path("SYNTH") / "success" / "2022-01-01" / name
    serials = {camera: f"{10_000_000 + 10 * number + k}" for k, camera in enumerate(CAMERAS)}
    for camera, turn in CAMERAS.items():
        video = draw_video(rng, states, height, width, turn)
        write_video(out / relative / "recordings" / "MP4" / f"{serials[camera]}.mp4", video, FPS)
    _write_h5(out / relative / "trajectory.h5", states, serials)
    uuid = f"SYNTH+{seed:08x}+2022-01-01-{number:06d}"
    meta = {"uuid": uuid, "lab": "SYNTH", "success": True, "trajectory_length": len(states)}
    meta |= {"current_task": "move the gripper over the table", "hdf5_path": str(relative / "trajectory.h5")}
    for camera, serial in serials.items():
        role = {"left": "ext1", "right": "ext2", "wrist": "wrist"}[camera]
        path = str(relative / "recordings" / "MP4" / f"{serial}.mp4")
        meta |= {f"{role}_cam_serial": serial, f"{role}_mp4_path": path, f"{camera}_mp4_path": path}
    write_text(out / relative / f"metadata_{uuid}.json", json.dumps(meta, indent=1) + "\n")
    return {"id": str(relative), "uuid": uuid, "frames": len(states)}


def _write_h5(path: Path, states: NDArray[np.float64], serials: dict[str, str]) -> None:
    try:
        import h5py
    except ImportError as error:
        raise UserError("the droid layout needs h5py: pip install 'polyspace[robot]'") from error
    with atomic_file(path) as raw, h5py.File(raw, "w", track_order=True) as file:
        robot = file.create_group("observation/robot_state")
        robot["cartesian_position"], robot["gripper_position"] = states[:, :6], states[:, 6]
        action = file.create_group("action")
        target = np.concatenate([states[1:], states[-1:]])
        action["cartesian_position"], action["gripper_position"] = target[:, :6], target[:, 6]
        action["delta"] = actions_from_states(torch.from_numpy(states)).numpy()
        for serial in serials.values():
            file[f"observation/camera_extrinsics/{serial}_left"] = np.zeros((len(states), 6))
