"""`polyspace make-backbones`: the four small backbones that come with the package, trained from nothing.

Real transformers architectures at toy size (24×24 pixels), each trained to read some of the generator's own facts off
other generated clips: how fast the object turns, where it is, how it moves, what it looks like. Speeds are drawn from a
continuum, so the classes of the demo (whole turns) are not the labels here. `TASKS` says which backbone learned what.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from polyspace.config import Config, parse, run_command
from polyspace.data import render
from polyspace.data.batch import VideoBatch
from polyspace.data.sampling import segment_indices
from polyspace.data.transforms import normalize, resize
from polyspace.models.backbones.hf import FAMILIES, HFBackbone
from polyspace.models.backbones.plans import default_plan
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.log import Progress, say
from polyspace.utils.misc import set_seed

SIDE, RENDERED, FRAMES, PATCH, WIDTH, DEPTH = 24, 48, 37, 8, 64, 4
MAX_TURNS, BINS = 4.5, 18
TASKS = {
    "vjepa2": ("speed", "place", "look"),
    "videomae": ("speed", "place"),
    "timesformer": ("look",),
    "vivit": ("speed", "look"),
}
SAYS = {
    "speed": "turns a clip of the object, signed, in 18 bins",
    "place": "position and velocity of the object at each time step",
    "look": "shape and colour of the object, 24 kinds",
}


class EmbeddedConfig(Config):
    out: Path = Field(description="folder for the four checkpoints")
    names: list[str] = Field(list(TASKS), description="which to train")
    clips: int = Field(4000, ge=200, description="generated training clips")
    steps: int = Field(5000, ge=1, description="updates for each")
    batch: int = Field(32, ge=1, description="clips an update")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    seed: int = Field(12345, ge=0, description="clips, weights and order")
    threads: int = Field(1, ge=1, description="torch threads")
    work: Path = Field(Path("outputs/backbones"), description="folder for checkpoints on the way")


@dataclass(frozen=True)
class StateClips:
    """video uint8 (n,T,H,W,3); turns (n,); place (n,T,4) = x, y, dx, dy (half widths; per clip length); look (n,)."""

    video: Tensor
    turns: Tensor
    place: Tensor
    look: Tensor


def _draw(seed: tuple[int, int]) -> tuple[np.ndarray, float, np.ndarray, int]:
    rng = np.random.default_rng(list(seed))
    turns = rng.uniform(-MAX_TURNS, MAX_TURNS)
    scene = render.draw_scene(rng)
    angle = scene.phase + 2 * math.pi * turns * np.arange(FRAMES) / FRAMES
    x = scene.centre[0] + scene.radius * np.cos(angle)
    y = scene.centre[1] + scene.radius * np.sin(angle)
    canvas = render.ground(rng, FRAMES, RENDERED, RENDERED)
    render.paint(canvas, (x, y), scene.shape, scene.size, render.COLOURS[scene.colour])
    canvas += rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    video = torch.from_numpy((canvas.clip(0, 1) * 255).round().astype(np.uint8))
    speed = scene.radius * turns / MAX_TURNS
    place = np.stack([x, y, -speed * np.sin(angle), speed * np.cos(angle)], 1).astype(np.float32)
    look = render.SHAPES.index(scene.shape) * len(render.COLOURS) + list(render.COLOURS).index(scene.colour)
    return resize(video, (SIDE, SIDE)).numpy(), turns, place, look


def draw_clips(count: int, seed: int) -> StateClips:
    """Clips with continuous speeds, drawn by two processes."""
    with ProcessPoolExecutor(2) as pool, Progress(count, "clips", "clip") as bar:
        drawn = []
        for item in pool.map(_draw, [(seed, i) for i in range(count)], chunksize=16):
            drawn.append(item)
            bar.step()
    video, turns, place, look = zip(*drawn, strict=True)
    return StateClips(
        torch.from_numpy(np.stack(video)),
        torch.tensor(turns).float(),
        torch.from_numpy(np.stack(place)),
        torch.tensor(look),
    )


def small_model(name: str) -> HFBackbone:
    """The architecture at toy size."""
    import transformers

    family = FAMILIES[name]
    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "patch_size": PATCH}
    shape |= {"mlp_ratio": 3} if name == "vjepa2" else {"intermediate_size": 3 * WIDTH}
    extra: dict[str, dict[str, Any]] = {
        "vjepa2": {"crop_size": SIDE, "frames_per_clip": 16}
        | {f"pred_{k}": v for k, v in (("hidden_size", 24), ("num_hidden_layers", 1), ("num_attention_heads", 2))},
        "videomae": {"image_size": SIDE, "num_frames": 16, "use_mean_pooling": False},
        "timesformer": {"image_size": SIDE, "num_frames": 8},
        "vivit": {"image_size": SIDE, "num_frames": 32, "tubelet_size": [4, PATCH, PATCH]},
    }
    config = getattr(transformers, family.model_class.replace("Model", "Config"))(**shape, **extra[name])
    model = getattr(transformers, family.model_class)._from_config(config, attn_implementation=family.attention)
    frames = default_plan(name, config, 16).frames
    return HFBackbone(name, model, None, frames, (SIDE, SIDE))


class StatePhase(Phase):
    """A backbone with linear read-outs of its tasks, from the clip feature and from each time step's mean token."""

    def __init__(self, name: str, held_out: tuple[VideoBatch, StateClips] | None = None) -> None:
        super().__init__()
        self.backbone, self.tasks = small_model(name), TASKS[name]
        self.speed, self.look, self.place = nn.Linear(WIDTH, BINS), nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 4)
        self._held_out = held_out

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.video is not None and batch.features is not None
        features = self.backbone(batch.video)
        t, h, w = self.backbone.grid
        steps = features.tokens.unflatten(1, (t, h * w)).mean(2)  # (B,t·hw,D) -> (B,t,D)
        every = torch.cat([features.pooled[:, None], steps], 1)
        losses = {}
        if "speed" in self.tasks:
            losses["speed"] = _cross_entropy(self.speed(every), speed_bin(batch.features["turns"]))
        if "look" in self.tasks:
            losses["look"] = _cross_entropy(self.look(every), batch.features["look"])
        if "place" in self.tasks:
            place = F.adaptive_avg_pool1d(batch.features["place"].mT, t).mT
            losses["place"] = 10 * F.mse_loss(self.place(steps), place)
        return StepOutput(sum(losses.values(), torch.zeros(())), {k: v.detach() for k, v in losses.items()})

    def evaluate(self, step: int) -> dict[str, Any]:
        assert self._held_out is not None
        batch = self._held_out[0]
        assert batch.video is not None and batch.features is not None
        pooled = torch.cat([self.backbone(part).pooled for part in batch.video.split(64)])
        speed, turns = self.speed(pooled).argmax(1), batch.features["turns"]
        return {
            "speed_bin_accuracy": (speed == speed_bin(turns)).double().mean().item(),
            "sense_accuracy": ((speed >= BINS // 2) == (turns > 0)).double().mean().item(),
            "look_accuracy": (self.look(pooled).argmax(1) == batch.features["look"]).double().mean().item(),
        }


def speed_bin(turns: Tensor) -> Tensor:
    return ((turns + MAX_TURNS) * BINS / (2 * MAX_TURNS)).long().clamp(0, BINS - 1)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """logits (B,S,K) against one label a clip."""
    return F.cross_entropy(logits.flatten(0, 1), label.repeat_interleave(logits.shape[1]))


def make_batch(
    clips: StateClips, indices: Tensor, backbone: HFBackbone, generator: torch.Generator | None
) -> VideoBatch:
    """Sampled frames, normalised; with a generator also random frames within segments, mirrors and quarter turns."""
    config = backbone.model.config
    plan = default_plan(backbone.name, config, backbone.frames)
    picks = torch.tensor(segment_indices(FRAMES, backbone.frames, generator))
    video, turns, place = clips.video[indices][:, picks], clips.turns[indices], clips.place[indices][:, picks]
    if generator is not None:
        mirror, quarters = (int(torch.randint(n, (), generator=generator)) for n in (2, 4))
        if mirror:
            video, turns, place = video.flip(3), -turns, place * torch.tensor([-1.0, 1.0, -1.0, 1.0])
        video = torch.rot90(video, quarters, (2, 3))
        for _ in range(quarters):  # rot90 of (rows, columns) takes (x, y) to (y, −x) on the screen
            x, y, dx, dy = place.unbind(-1)
            place = torch.stack([y, -x, dy, -dx], -1)
    targets = {"turns": turns, "place": place, "look": clips.look[indices]}
    return VideoBatch(video=normalize(video, plan), features=targets)


def train_one(config: EmbeddedConfig, name: str, clips: StateClips, held_out: StateClips) -> dict[str, Any]:
    """Train and save one backbone; returns its held-out scores."""
    set_seed(config.seed)
    phase = StatePhase(name)
    phase._held_out = make_batch(held_out, torch.arange(len(held_out.turns)), phase.backbone, None), held_out
    settings = FitSettings(
        config.steps, config.batch, config.lr, save_every=500, log_every=50, eval_every=250, seed=config.seed
    )
    before = phase.eval().evaluate(0)

    def load(indices: Tensor) -> VideoBatch:
        return make_batch(
            clips, indices, phase.backbone, torch.Generator().manual_seed(int(indices.sum()) * 7919 + int(indices[0]))
        )

    engine = PlainEngine(phase, build_adamw(phase, config.lr, 0.05), torch.device("cpu"))
    metrics = fit(engine, len(clips.turns), load, settings, config.work / name, name=name, about={"name": name})
    folder = config.out / name
    plan = default_plan(name, phase.backbone.model.config, 16)
    phase.backbone.model.save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    preprocess = {"size": {"shortest_edge": SIDE}, "crop_size": crop, "rescale_factor": plan.scale}
    preprocess |= {"image_mean": plan.mean, "image_std": plan.std, "do_normalize": True}
    preprocess |= {"offset": True, "do_normalize": False} if name == "vivit" else {}
    write_json(folder / "preprocessor_config.json", preprocess)
    after = {k: v for k, v in metrics.items() if k.endswith("accuracy")}
    about = {"objective": {task: SAYS[task] for task in TASKS[name]}, "held_out": after, "random_init": before}
    about |= {"settings": json.loads(config.model_dump_json(include={"clips", "steps", "batch", "lr", "seed"}))}
    write_json(folder / "about.json", about)
    return after


def main(argv: Sequence[str]) -> int:
    config = parse(
        EmbeddedConfig,
        argv,
        prog="polyspace make-backbones",
        about="Train the four small backbones that the demo uses, on generated clips.",
        example="polyspace make-backbones --out polyspace/assets/backbones --steps 5000 --seed 12345",
    )
    torch.set_num_threads(config.threads)
    clips, held_out = draw_clips(config.clips, config.seed), draw_clips(256, config.seed + 1)
    for name in config.names:
        say(f"{name}: {json.dumps(train_one(config, name, clips, held_out))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
