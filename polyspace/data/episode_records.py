"""Robot episodes: frames, states and the actions between them, aligned or left out with a reason.

The rule: frame i belongs to state i. A camera with as many decodable frames as there are states is taken as it is; one
frame more or one fewer (what a recorder loses or adds at its end) cuts both to the shorter, and is noted. Any other
episode is left out with its reason, never repaired by resampling: so are states that are not finite, not 7 numbers or
fewer than 2, and an episode without a readable camera. Frames are counted by decoding them, not read from a header.
"""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from polyspace.data.droid import actions_from_states
from polyspace.data.frames import FrameSource, FrameView
from polyspace.data.video import VideoError
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import Progress
from polyspace.utils.reading import brief

MAX_NUMBERS = 1 << 26  # of one table of an episode: 370 hours at 50 Hz


class Unfit(UserError):
    """An episode can't be used as it is; the text is its reason in `EpisodeDataset.left_out`."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """Actions as the data set recorded them, one a step, float64 (n,A), and what they mean."""

    values: Float64[Tensor, "n A"]
    meaning: str


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """One episode. `states` are [x, y, z (m), extrinsic-xyz Euler (rad), gripper (the data set's own sense)].

    `cameras` maps names to sources with a frame for each state; `group` is what was recorded together and must not
    straddle a hold-out; `fps` is of states and frames alike; `recorded` is there where the layout has it.
    """

    id: str
    group: str
    cameras: Mapping[str, FrameSource]
    states: Float64[Tensor, "T 7"]
    fps: float
    text: str | None = None
    success: bool | None = None
    recorded: Recorded | None = None

    def __len__(self) -> int:
        return len(self.states)

    @cached_property
    def actions(self) -> Float64[Tensor, "S 7"]:
        """From the states, (T−1,7): [Δxyz, Euler of R_{t+1}·R_tᵀ, Δgripper]; row t leads from state t to t+1."""
        return actions_from_states(self.states)

    def frames(self, camera: str, start: int, count: int) -> UInt8[Tensor, "n H W 3"]:
        """Frames `start` … `start + count − 1` of a camera; UserError where there is no such camera."""
        if camera not in self.cameras:
            raise UserError(f"episode {self.id} has no camera {camera!r}{did_you_mean(camera, self.cameras)}")
        return self.cameras[camera].read(range(start, start + count))


@dataclass(frozen=True)
class EpisodeDataset:
    """Episodes that can be used, those that can't {id: reason}, and remarks for the log."""

    name: str
    layout: str
    records: list[EpisodeRecord]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Draft:
    """What a reader found, before anything is checked: `states` may have any shape; `notes` are remarks for the log."""

    id: str
    group: str
    cameras: Mapping[str, FrameSource]
    states: Tensor
    fps: float
    text: str | None = None
    success: bool | None = None
    recorded: Recorded | None = None
    notes: tuple[str, ...] = ()


def table(rows: Any, what: str) -> Float64[Tensor, "n d"]:
    """Rows of numbers, or an array, as float64; Unfit where they differ in length or hold something else."""
    try:
        values = torch.as_tensor(rows, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise Unfit(f"{what} is no table of numbers ({brief(error)})") from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise Unfit(f"{what} has {values.ndim} dimensions, not 2")
    return values


def read_item(file: Path, what: str) -> dict[str, Any]:
    """The JSON dictionary of one episode; Unfit where it is damaged."""
    try:
        item = read_json(file, what)
    except UserError as error:
        raise Unfit(str(error)) from error
    if not isinstance(item, dict):
        raise Unfit(f"{what} {file} holds no dictionary")
    return item


def check_states(states: Tensor) -> None:
    """Unfit, with the numbers, for what can't be states."""
    if states.ndim != 2 or states.shape[1] != 7:
        raise Unfit(f"its states have shape {tuple(states.shape)}; (T, 7) is needed: xyz, Euler angles, gripper")
    if len(states) < 2:
        raise Unfit(f"it has {len(states)} states; at least 2 are needed for an action")
    bad = (~states.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise Unfit(f"{len(bad)} of its {len(states)} states are not finite (the first is state {bad[0]})")


def align(draft: Draft, camera: str | None = None) -> tuple[EpisodeRecord, list[str]]:
    """A draft under the rule above, with one camera or all, and what there is to note; Unfit where it can't be."""
    check_states(draft.states)
    if not 0 < draft.fps < float("inf"):
        raise Unfit(f"its rate is {draft.fps} frames a second")
    wanted = draft.cameras if camera is None else {k: v for k, v in draft.cameras.items() if k == camera}
    if not wanted:
        raise Unfit(f"it has no camera {camera}" if camera else "it has no camera")
    counts, notes = _counts(draft.id, wanted)
    notes = [f"{draft.id}: {note}" for note in draft.notes] + notes
    states = len(draft.states)
    for name, count in counts.items():
        if abs(count - states) > 1:
            raise Unfit(f"camera {name} has {count} frames for {states} states")
        if count != states:
            notes.append(f"{draft.id}: camera {name} has {count} frames for {states} states; cut to the shorter")
    length = min(states, *counts.values())
    if length < 2:
        raise Unfit(f"it has {length} frame with a state; at least 2 are needed for an action")
    cameras = {name: FrameView(wanted[name], length) for name in counts}
    recorded = draft.recorded
    if recorded is not None:
        recorded = replace(recorded, values=recorded.values[:length])
    kept = draft.states[:length].double()
    record = EpisodeRecord(draft.id, draft.group, cameras, kept, draft.fps, draft.text, draft.success, recorded)
    return record, notes


def _counts(id: str, cameras: Mapping[str, FrameSource]) -> tuple[dict[str, int], list[str]]:
    """Decodable frames of each readable camera; the others are noted."""
    counts, faults = {}, {}
    for name, source in cameras.items():
        try:
            counts[name] = source.count()
        except VideoError as error:
            faults[name] = str(error)
    if not counts:
        raise Unfit("it has no readable camera: " + "; ".join(f"{k}: {v}" for k, v in faults.items()))
    return counts, [f"{id}: camera {name} is not readable and not used ({why})" for name, why in faults.items()]


def collect(
    name: str,
    layout: str,
    drafts: Iterable[tuple[str, Callable[[], Draft]]],
    camera: str | None = None,
    notes: Iterable[str] = (),
) -> EpisodeDataset:
    """Align every draft. UserError for an id that occurs twice, an unknown camera, or where no episode can be used."""
    out = EpisodeDataset(name, layout, [], {}, list(notes))
    seen: set[str] = set()
    cameras: set[str] = set()
    total = len(drafts) if isinstance(drafts, Sized) else None
    with Progress(total, f"read {name}", "episode", delay=2.0) as bar:
        for id, read in drafts:
            bar.step()
            if id in seen:
                raise UserError(f"{name}: episode {id!r} is listed twice")
            seen.add(id)
            try:
                draft = read()
                cameras |= set(draft.cameras)
                record, remarks = align(draft, camera)
            except Unfit as fault:
                out.left_out[id] = str(fault)
                continue
            out.records.append(record)
            out.notes.extend(remarks)
    if camera is not None and cameras and camera not in cameras:
        raise UserError(f"--camera {camera} is unknown to {name}{did_you_mean(camera, cameras)}")
    if not seen:
        raise UserError(f"{name}: no episode is there")
    if not out.records:
        why = next((f"; {id}: {reason:.500}" for id, reason in out.left_out.items()), "")
        raise UserError(f"{name}: none of its {len(out.left_out)} episodes can be used{why}")
    return out


def subsample(record: EpisodeRecord, *, fps: float | None = None, stride: int | None = None) -> EpisodeRecord:
    """Every k-th state and frame; k is `stride`, or the record's rate over `fps`, which must be whole within 1 %.

    Actions are formed anew between kept states, which composes the rotations between them; `recorded` actions are
    dropped, since what k commands in a row amount to is not known. UserError where fewer than 2 states would be left.
    """
    if (fps is None) == (stride is None):
        raise UserError("subsample needs either fps or stride")
    if fps is not None:
        ratio = record.fps / fps if fps > 0 else 0.0
        stride = round(ratio)
        if stride < 1 or abs(ratio - stride) > 0.01 * stride:
            raise UserError(f"--fps {fps:g} does not divide the {record.fps:g} of episode {record.id}")
    assert stride is not None
    if stride < 1:
        raise UserError(f"--stride {stride} is not positive")
    if stride == 1:
        return record
    states = record.states[::stride]
    if len(states) < 2:
        raise UserError(f"episode {record.id} has {len(record)} states; a stride of {stride} leaves {len(states)}")
    cameras = {name: FrameView(source, len(states), stride) for name, source in record.cameras.items()}
    return replace(record, cameras=cameras, states=states, fps=record.fps / stride, recorded=None)


def windows(record: EpisodeRecord, frames: int, stride: int = 1) -> list[int]:
    """First frames of the windows of `frames` frames that lie inside, `stride` frames apart; UserError where none."""
    if frames < 2 or stride < 1:
        raise UserError(f"a window needs at least 2 frames and a positive stride, got {frames} and {stride}")
    if len(record) < frames:
        raise UserError(_too_short(record, frames))
    return list(range(0, len(record) - frames + 1, stride))


def with_room_for(dataset: EpisodeDataset, frames: int) -> EpisodeDataset:
    """The data set without the episodes that are shorter than a window of `frames`; those are in `left_out`."""
    short = {r.id: _too_short(r, frames) for r in dataset.records if len(r) < frames}
    kept = [r for r in dataset.records if r.id not in short]
    if not kept:
        raise UserError(f"{dataset.name}: all {len(short)} videos are shorter than the horizon of {frames} frames")
    return replace(dataset, records=kept, left_out={**dataset.left_out, **short})


def _too_short(record: EpisodeRecord, frames: int) -> str:
    return f"videos shorter than the horizon: episode {record.id} has {len(record)} frames, a window needs {frames}"
