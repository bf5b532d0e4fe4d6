"""DROID as annotation JSON: `annotation/<split>/<id>.json` beside `videos/<split>/<id>/<camera>.mp4`.

`states` (T,7) = [cartesian position, gripper] of every third step of the 15 Hz record; `videos` lists the cameras by
number (0 and 1 outside, 2 at the wrist), `texts` the instruction, `success` 0 or 1. The rate is that of the videos.
Layout of Ctrl-World's example data (2025).
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyspace.data.droid import COMMANDED_POSE
from polyspace.data.episode_records import Draft, EpisodeDataset, Recorded, Unfit, collect, read_item, table
from polyspace.data.frames import VideoFrames
from polyspace.data.records import inside
from polyspace.data.video import VideoError, probe
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.reading import reads

STRIDE = 3  # steps of the raw record from one state to the next


def build(root: Path, split: str | None = None, camera: str | None = None) -> EpisodeDataset:
    """Episodes of one split, or of all; ids are `<split>/<file name>`. The group of an episode is itself."""
    folder = root / "annotation"
    found = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()} if folder.is_dir() else {}
    if split == "validation" and split not in found:
        split = "val"
    if split is not None and split not in found:
        raise UserError(f"--split {split}: {folder} has no such folder{did_you_mean(split, found)}")
    files = [f for name in found if split in (None, name) for f in sorted(found[name].glob("*.json"))]
    drafts = [(f"{f.parent.name}/{f.stem}", partial(_read, root, f)) for f in files]
    return collect(root.name, "annotation", drafts, camera)


def _read(root: Path, file: Path) -> Draft:
    with reads(file, "annotation", Unfit):
        return _draft(root, file)


def _draft(root: Path, file: Path) -> Draft:
    item = read_item(file, "annotation")
    if not isinstance(item.get("videos"), list) or "states" not in item:
        raise Unfit(f"{file} lacks `states` or `videos`")
    paths = {}
    for number, video in enumerate(item["videos"]):
        name = video.get("video_path") if isinstance(video, dict) else None
        if not isinstance(name, str):
            raise Unfit(f"{file}: its video {number} has no video_path")
        paths[str(number)] = inside(root, name)
    states = table(item["states"], "`states`")
    texts = item.get("texts")
    success = item.get("success")
    id = f"{file.parent.name}/{file.stem}"
    return Draft(
        id=id,
        group=id,
        cameras={name: VideoFrames(path) for name, path in paths.items()},
        states=states,
        fps=_rate(paths),
        text=str(texts[0]) if isinstance(texts, list) and texts and texts[0] else None,
        success=None if success is None else bool(success),
        recorded=_recorded(item, states),
    )


def _rate(paths: dict[str, Path]) -> float:
    """Frames a second of the videos that can be read; Unfit where they differ."""
    rates = set()
    for path in paths.values():
        try:
            rates.add(round(probe(path).fps, 3))
        except VideoError:
            continue  # alignment tells of it
    if len(rates) > 1:
        raise Unfit(f"its cameras differ in rate: {', '.join(f'{r:g}' for r in sorted(rates))} frames a second")
    return rates.pop() if rates else 1.0


def _recorded(item: dict[str, Any], states: Tensor) -> Recorded | None:
    """Commanded poses where the raw record is there and its every third step is the states, bit for bit."""

    def pair(kind: str) -> Tensor | None:
        keys = f"{kind}.cartesian_position", f"{kind}.gripper_position"
        if not all(key in item for key in keys):
            return None
        return torch.cat([table(item[key], f"`{key}`")[::STRIDE] for key in keys], 1)

    observed, commanded = pair("observation.state"), pair("action")
    if observed is None or commanded is None or observed.shape != states.shape or not observed.equal(states):
        return None
    return Recorded(commanded, COMMANDED_POSE)
