"""Robot episodes as latents and actions, for the action phase: generated ones, recorded ones, or a simulator's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import Config
from polyspace.data.batch import VideoBatch
from polyspace.data.droid import actions_from_states
from polyspace.data.episodes import EpisodeRecord, build_episodes, subsample, with_room_for
from polyspace.data.synthetic_droid import draw_states, draw_video
from polyspace.data.transforms import crop_at, resize, resized_shape
from polyspace.models.action import WorldModel
from polyspace.utils.checkpoint_io import load_tensors, save_tensors
from polyspace.utils.errors import UserError
from polyspace.utils.holdout import hold_out
from polyspace.utils.log import Progress, say, warn


class EpisodeConfig(Config):
    source: Literal["generated", "recorded", "file"] = Field(
        "generated", description="generated, recorded (a data set under root), or file (of `collect`)"
    )
    root: Path | None = Field(None, description="recorded: the data set's folder; file: the file")
    layout: str = Field("auto", description="recorded: droid, annotation, lerobot, rlds, or auto")
    split: str | None = Field(None, description="recorded: the data set's own split; none: all")
    camera: str | None = Field(None, description="recorded: one camera; none: each of an episode's is one view of it")
    stride: int = Field(1, ge=1, description="recorded: every so many frames; actions are composed between them")
    episodes: int = Field(400, ge=2, description="generated episodes to train on")
    held_out: int = Field(80, ge=1, description="generated episodes held out")
    frames: int = Field(12, ge=3, description="frames of a generated episode, 5 a second")
    held_share: float = Field(0.2, gt=0, lt=1, description="recorded, file: share of episodes held out")


@dataclass(frozen=True)
class Views:
    """Recordings of different lengths: frames uint8 (T,H,W,3) and actions float32 (T−1,A) of each, its name, and its
    group: an episode that several cameras saw has several recordings of one group."""

    frames: list[Tensor]
    actions: list[Tensor]
    names: list[str]
    groups: list[str]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, rows: Sequence[int]) -> "Views":
        pick: Any = lambda items: [items[i] for i in rows]  # noqa: E731
        return Views(pick(self.frames), pick(self.actions), pick(self.names), pick(self.groups), self.about)


def generated_views(count: int, seed: int, frames: int, size: int) -> Views:
    """A gripper over a table, 5 frames a second, every episode with a table and a walk of its own."""
    videos, actions = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, 7, number])
        states = draw_states(rng, 3 * frames)[::3]
        videos.append(torch.from_numpy(draw_video(rng, states, size, size, 0.0)))
        actions.append(actions_from_states(torch.from_numpy(states)).float())
    names = [f"generated{i:06d}" for i in range(count)]
    return Views(videos, actions, names, names, {"source": "generated"})


def recorded_views(config: EpisodeConfig, size: int, least: int) -> Views:
    """Every camera of every usable episode, resized and cropped to a square."""
    if config.root is None:
        raise UserError("action.episodes.root is required for recorded episodes")
    found = build_episodes(config.root, config.layout, config.split, config.camera)
    found = with_room_for(found, (least - 1) * config.stride + 1)
    for note in found.notes:
        say(note)
    for name, reason in found.left_out.items():
        warn(f"episode {name} is left out: {reason}")
    videos, actions, names, groups = [], [], [], []
    with Progress(len(found.records), f"decode {found.name}", "episode") as bar:
        for record in found.records:
            kept = subsample(record, stride=config.stride)
            for camera in kept.cameras:
                videos.append(_square(kept, camera, size))
                actions.append(kept.actions.float())
                names.append(f"{record.id}/{camera}")
                groups.append(record.group)
            bar.step()
    about = {"source": "recorded", "layout": found.layout, "episodes": len(found.records), "left_out": found.left_out}
    return Views(videos, actions, names, groups, about)


def _square(record: EpisodeRecord, camera: str, size: int) -> Tensor:
    frames = record.frames(camera, 0, len(record))
    shape = resized_shape(frames.shape[1], frames.shape[2], size)
    return crop_at(resize(frames, shape, "bilinear"), (size, size)).contiguous()


def save_views(path: Path, video: Tensor, actions: Tensor) -> None:
    """Episodes of one length in one file: video uint8 (E,T,H,W,3), actions float32 (E,T−1,A)."""
    save_tensors(path, {"video": video, "actions": actions})


def file_views(path: Path | None) -> Views:
    if path is None:
        raise UserError("action.episodes.root is required: the file that `polyspace collect` wrote")
    held = load_tensors(path, "episodes")
    if held.keys() != {"video", "actions"} or held["video"].ndim != 5 or held["actions"].ndim != 3:
        raise UserError(f"{path} holds no episodes (video (E,T,H,W,3) and actions (E,T-1,A))")
    if held["actions"].shape[:2] != (held["video"].shape[0], held["video"].shape[1] - 1):
        raise UserError(
            f"{path}: {tuple(held['actions'].shape)} actions do not fit {tuple(held['video'].shape)} frames"
        )
    names = [f"episode{i:06d}" for i in range(len(held["video"]))]
    return Views(list(held["video"]), list(held["actions"]), names, names, {"source": "file"})


def build_views(config: EpisodeConfig, seed: int, size: int, least: int) -> tuple[Views, Views]:
    """Episodes to train on and held out, none shorter than `least` frames; whole episodes are held out, all their
    cameras together."""
    if config.source == "generated":
        train = generated_views(config.episodes, seed, config.frames, size)
        return train, generated_views(config.held_out, seed + 77_777, config.frames, size)
    if config.source == "recorded":
        views = recorded_views(config, size, least)
    else:
        views = file_views(config.root)
        short = [n for n, v in zip(views.names, views.frames, strict=True) if len(v) < least]
        if short:
            raise UserError(
                f"videos shorter than the horizon: {config.root} has {len(views.frames[0])} frames, {least} needed"
            )
    held = hold_out(views.groups, [None] * len(views), config.held_share, seed).tolist()
    parts = [views.select([i for i, out in enumerate(held) if out == side]) for side in (False, True)]
    return parts[0], parts[1]


def check_actions(views: Views, dims: int) -> None:
    """UserError for actions of other dims than configured, or that are not numbers."""
    for name, actions in zip(views.names, views.actions, strict=True):
        if actions.shape[1] != dims:
            raise UserError(f"episode {name} has actions of {actions.shape[1]} dims, action.action_dim is {dims}")
        bad = (~actions.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"episode {name}: {len(bad)} of {len(actions)} actions are not finite (the first is {bad[0]})"
            )


class LatentEpisodes:
    """Latents (T,N,D) and actions (T−1,A) of episodes; an item is a window of `frames` frames at one place of one.

    With `apart`, features also has the window's `first` frame, the one `apart` frames `later` (or the episode's last)
    and the sum of the actions between, `travel`. `groups` of the recordings: by default each is its own.
    """

    def __init__(
        self,
        latents: list[Tensor],
        actions: list[Tensor],
        frames: int,
        apart: int = 0,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.latents, self.actions, self.frames, self.apart = latents, actions, frames, apart
        known = {name: i for i, name in enumerate(dict.fromkeys(groups or ()))}
        of_each = list(range(len(latents))) if groups is None else [known[name] for name in groups]
        self.places = [(e, s) for e, z in enumerate(latents) for s in range(len(z) - frames + 1)]
        self.groups = torch.tensor([of_each[e] for e, _ in self.places], dtype=torch.int64)  # of each item

    def elsewhere(self) -> Tensor | None:
        """For each item one of another group, half of all items away where that is one; None for a single group."""
        if len(self.groups.unique()) < 2:
            return None
        n, rows = len(self), torch.arange(len(self))
        found = (rows + n // 2) % n
        while bool((same := self.groups[found] == self.groups).any()):
            found = torch.where(same, (found + 1) % n, found)
        return found

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Tensor) -> VideoBatch:
        picked = [self.places[i] for i in indices.tolist()]
        latents = torch.stack([self.latents[e][s : s + self.frames] for e, s in picked])
        actions = torch.stack([self.actions[e][s : s + self.frames - 1] for e, s in picked])
        features = {"latents": latents}
        if self.apart:
            features |= {
                "first": latents[:, 0],
                "later": torch.stack([self.latents[e][self._end(e, s)] for e, s in picked]),
            }
            ways = [self.actions[e][s : self._end(e, s)].sum(0) for e, s in picked]
            features["travel"] = torch.stack(ways)
        return VideoBatch(features=features, actions=actions)

    def _end(self, episode: int, start: int) -> int:
        return min(start + self.apart, len(self.latents[episode]) - 1)


@torch.no_grad()
def encode_views(
    world: WorldModel, views: Views, scale: dict[str, Any], device: torch.device, name: str
) -> list[Tensor]:
    """Normalised latents of each episode's frames, (T,N,D) float32 on the CPU."""
    mean, std = (torch.tensor(scale[key], device=device) for key in ("mean", "std"))
    out = []
    with Progress(len(views), f"{name}: latents", "episode") as bar:
        for frames in views.frames:
            parts = [(block.to(device).float() / 255 - mean) / std for block in frames.split(64)]
            out.append(torch.cat([world.encode(part).cpu() for part in parts]))
            bar.step()
    return out
