"""Small robot data sets for tests: states that walk and turn, and videos whose brightness tells the frame."""

import json
import math
from pathlib import Path

import numpy as np

from polyspace.data.video_writer import write_video


def walk(frames: int, seed: int = 0) -> np.ndarray:
    """States (T,7) whose angles turn in all three axes and wrap."""
    rng = np.random.default_rng(seed)
    states = np.cumsum(rng.normal(0, 0.3, (frames, 7)), 0)
    states[:, 3:6] = (states[:, 3:6] + [3.0, 0, 3.0] + math.pi) % (2 * math.pi) - math.pi
    states[:, 4] = np.clip(states[:, 4], -1.2, 1.2)
    return states


def video(path: Path, frames: int, fps: float = 5.0, first: int = 0) -> Path:
    """Frame i is grey of level 10·(first + i) mod 250."""
    levels = (10 * (first + np.arange(frames))) % 250
    write_video(path, np.broadcast_to(levels[:, None, None, None], (frames, 16, 32, 3)).astype(np.uint8), fps)
    return path


def level(frames) -> list[int]:
    """The number of each frame, read back from its brightness."""
    return [round(float(f.float().mean()) / 10) for f in frames]


def annotation(root: Path, name: str, states, frames: tuple[int, ...] = (6,), **item) -> Path:
    """One episode of the annotation layout, split `train`, a camera for each of `frames`."""
    paths = [f"videos/train/{name}/{k}.mp4" for k in range(len(frames))]
    for path, count in zip(paths, frames, strict=True):
        if count:
            video(root / path, count)
    rows = states.tolist() if isinstance(states, np.ndarray) else states
    content = {"states": rows, "videos": [{"video_path": p} for p in paths], "texts": ["go"], "success": 1}
    file = root / "annotation" / "train" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content | item))
    return file
