"""`polyspace make-backbones`: the five small backbones that come with the package, trained from nothing.

Our own H-Net V-JEPA and real transformers architectures at toy size (24×24 pixels), each with an objective of its own
(`TASKS`), as the published ones have, so that their feature spaces differ in kind and not by chance alone.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import Config, parse, run_command
from polyspace.data.batch import VideoBatch
from polyspace.train.embedded.chunks import STEPS, ChunkPhase
from polyspace.train.embedded.clips import StateClips, draw_clips, make_batch
from polyspace.train.embedded.latents import LatentPhase
from polyspace.train.embedded.phases import ClassPhase, EmbeddedPhase, PixelPhase
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.settings import Track
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import say
from polyspace.utils.misc import set_seed


@dataclass(frozen=True)
class Task:
    """What a backbone learns, in words; its phase; updates, clips an update and the peak rate."""

    says: str
    build: Callable[[], EmbeddedPhase | ChunkPhase]
    steps: int
    batch: int
    lr: float


TASKS = {
    "hnet_vjepa": Task("latents of the next two time steps, with chunks of its own", ChunkPhase, STEPS, 16, 2e-3),
    "vjepa2": Task("latents of the next two time steps (joint-embedding prediction)", LatentPhase, 8000, 16, 2e-3),
    "videomae": Task("pixels of hidden cells (masked autoencoding)", PixelPhase, 6000, 32, 2e-3),
    "timesformer": Task(
        "shape and colour of the object, 24 classes", partial(ClassPhase, "timesformer", "look"), 3000, 32, 2e-3
    ),
    "vivit": Task(
        "turns a clip of the object, signed, 18 classes", partial(ClassPhase, "vivit", "turns", True), 4000, 32, 2e-3
    ),
}


class EmbeddedConfig(Config):
    out: Path = Field(description="folder for the checkpoints")
    names: list[str] = Field(list(TASKS), description="which to train")
    clips: int = Field(4000, ge=1, description="generated training clips")
    held_out: int = Field(1024, ge=768, description="generated clips that scores are measured on")
    steps: int | None = Field(None, ge=1, description="updates for each; none: as many as its task takes")
    seed: int = Field(12345, ge=0, description="clips, weights and order")
    threads: int = Field(1, ge=1, description="torch threads")
    work: Path = Field(Path("outputs/backbones"), description="folder for checkpoints on the way")
    track: Track = ("auto",)


def train_one(config: EmbeddedConfig, name: str, clips: StateClips, held_out: StateClips) -> dict[str, Any]:
    """Train and save one backbone; returns what about.json says."""
    set_seed(config.seed)
    task = TASKS[name]
    phase = task.build()
    phase.held_out = make_batch(held_out, torch.arange(len(held_out)), phase.plan)
    with torch.no_grad():
        before = phase.eval().evaluate(0)

    def load(indices: Tensor) -> VideoBatch:
        draw = torch.Generator().manual_seed(int(indices.sum()) * 7919 + int(indices[0]))
        return make_batch(clips, indices, phase.plan, phase.frames(draw), draw)

    steps = config.steps or task.steps
    settings = FitSettings(steps, task.batch, task.lr, log_every=50, eval_every=500, seed=config.seed)
    depends = {"name": name, "objective": task.says, "clips": config.clips, "held_out_clips": len(held_out)}
    engine = PlainEngine(phase, build_adamw(phase, task.lr, 0.05), torch.device("cpu"))
    told: dict[str, Any] = {"name": name, "about": depends, "track": config.track}
    metrics = fit(engine, len(clips), load, settings, config.work / name, **told)
    about = {"objective": task.says, "held_out": {k: metrics[k] for k in before}, "random_init": before}
    chosen = {"clips": config.clips, "seed": config.seed, "steps": steps}
    about["settings"] = {**chosen, "held_out_clips": len(held_out), "batch": task.batch, "lr": task.lr}
    phase.save(config.out / name)
    write_json(config.out / name / "about.json", about)
    return about


def main(argv: Sequence[str]) -> int:
    config = parse(
        EmbeddedConfig,
        argv,
        prog="polyspace make-backbones",
        about="Train the five small backbones that the demo uses, on generated clips.",
        example="polyspace make-backbones --out polyspace/assets/backbones --seed 12345",
    )
    for name in config.names:
        if name not in TASKS:
            raise UserError(f"--names {name} is unknown{did_you_mean(name, TASKS)}")
    torch.set_num_threads(config.threads)
    clips, held_out = draw_clips(config.clips, config.seed), draw_clips(config.held_out, config.seed + 1)
    for name in config.names:
        about = train_one(config, name, clips, held_out)
        say(f"{name}: {json.dumps({k: about[k] for k in ('held_out', 'random_init')})}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
