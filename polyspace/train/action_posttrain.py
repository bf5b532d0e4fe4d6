"""Phase 4, action: a world model on the frozen encoder's latents, for planning."""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import validate
from polyspace.data.batch import VideoBatch
from polyspace.losses.energy import Kind, energy, energy_loss
from polyspace.models.action import ActionPredictor, WorldModel
from polyspace.train.checkpoint import load_strict
from polyspace.train.downstream.common import (
    PhaseConfig,
    Start,
    curves,
    entry,
    fit_phase,
    link,
    linked_encoder,
    load_start,
)
from polyspace.train.downstream.episodes import (
    EpisodeConfig,
    LatentEpisodes,
    Views,
    build_views,
    check_actions,
    encode_views,
)
from polyspace.train.encoders import load_encoder
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.checkpoint_io import load_tensors, read_json, save_tensors, sha256_file, write_json
from polyspace.utils.errors import UserError
from polyspace.utils.log import say
from polyspace.utils.metrics import bootstrap_interval


class ActionConfig(PhaseConfig):
    steps: int = Field(2500, ge=1, description="updates")
    batch: int = Field(8, ge=1, description="windows an update")
    lr: float = Field(2e-3, gt=0, description="highest learning rate of AdamW")
    eval_every: int = Field(
        500, ge=0, description="updates between evaluations on the held-out part; 0 at the end only"
    )
    episodes: EpisodeConfig = Field(default_factory=lambda: validate(EpisodeConfig, {}))
    size: int | None = Field(None, ge=8, description="pixels a side of the frames; none: the encoder's own")
    action_dim: int = Field(7, ge=1, description="numbers an action has")
    history: int = Field(1, ge=1, description="frames that are looked back at, the present one included")
    rollout: int = Field(2, ge=1, description="steps of the rollout that is trained, on the model's own predictions")
    rollout_weight: float = Field(1.0, ge=0, description="of the rollout's energy beside the teacher-forced one")
    horizon: int = Field(5, ge=1, description="steps over which held-out rollouts are judged")
    layers: int | None = Field(None, ge=1, description="latents are the mean of so many last layers; none: all")
    change_weight: float = Field(0.0, ge=0, le=1, description="how far a cell weighs as it changes, instead of alike")
    energy: Kind = Field("l1", description="how far predictions are from latents")
    width: int = Field(96, ge=8, description="dims of the predictor's tokens")
    depth: int = Field(2, ge=1, description="blocks of the predictor")
    heads: int = Field(4, ge=1, description="heads of the predictor")
    action_tokens: int = Field(4, ge=1, description="key-value tokens an action becomes")

    @property
    def window(self) -> int:
        """Frames that one item of training needs."""
        return self.history + max(1, self.rollout)


class ActionPhase(Phase):
    """loss = E(teacher-forced prediction of every next frame) + weight · E(rollout on own predictions)."""

    places: Tensor

    def __init__(self, world: WorldModel, config: ActionConfig, places: Tensor) -> None:
        super().__init__()
        self.predictor, self.config = world.predictor, config
        self.register_buffer("places", places, persistent=False)
        self.held: LatentEpisodes | None = None

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.features is not None and batch.actions is not None
        z, a, c = batch.features["latents"], batch.actions, self.config
        if a.shape[-1] != c.action_dim:
            raise UserError(f"actions have {a.shape[-1]} dims, action.action_dim is {c.action_dim}")
        h = c.history
        weight = change_weight(z, c.change_weight)
        forced = self.predictor(z[:, :h], a[:, :h], self.places)
        loss = energy_loss(forced, z[:, 1 : h + 1], weight[:, :h], c.energy)
        metrics = {"teacher_forced": loss.detach()}
        if c.rollout > 1:
            known = torch.cat([z[:, :h], forced[:, -1:]], 1)[:, -h:]
            out = self.predictor.rollout(known, a[:, 1:h], a[:, h : h + c.rollout - 1], self.places, h)
            rolled = energy_loss(out, z[:, h + 1 : h + c.rollout], weight[:, h:], c.energy)
            loss = loss + c.rollout_weight * rolled
            metrics["rollout"] = rolled.detach()
        return StepOutput(loss, metrics)

    def evaluate(self, step: int) -> dict[str, Any]:
        assert self.held is not None
        return open_loop(self.predictor, self.held, self.places, self.config)


def change_weight(latents: Tensor, share: float) -> Tensor:
    """Weights of the cells of frames 1 … (B,T−1,N), mean 1: `share` of it as a cell changes from the frame before, so
    that a small thing which moves is not lost among what stands still."""
    change = (latents[:, 1:] - latents[:, :-1]).abs().mean(-1)
    return 1 - share + share * change / change.mean().clamp_min(1e-9)


@torch.no_grad()
def open_loop(predictor: ActionPredictor, held: LatentEpisodes, places: Tensor, config: ActionConfig) -> dict[str, Any]:
    """Rollouts over `horizon` steps from `history` frames, over all held-out windows: the energy of each step beside
    that of the last known frame held still, and beside the same model told the actions of the window that lies half of
    the held-out windows away: another episode's, where none of them holds half of all. The interval is over episodes,
    whose windows overlap."""
    model, copied, other = [], [], []
    h = config.history
    for rows in torch.arange(len(held)).split(64):
        batch = held.batch(rows).to(places.device)
        assert batch.features is not None and batch.actions is not None
        z, a = batch.features["latents"], batch.actions
        goal = z[:, h:]
        far = held.batch((rows + len(held) // 2) % len(held)).actions
        assert far is not None
        told = torch.cat([a[:, : h - 1], far.to(a.device)[:, h - 1 :]], 1)
        for store, actions in ((model, a), (other, told)):
            out = predictor.rollout(z[:, :h], actions[:, : h - 1], actions[:, h - 1 :], places, h)
            store.append(energy(out, goal, config.energy).mean(2).cpu())
        copied.append(energy(z[:, h - 1 : h].expand_as(goal), goal, config.energy).mean(2).cpu())
    e, c, o = (torch.cat(x) for x in (model, copied, other))
    steps = (1 - e.mean(0) / c.mean(0)).tolist()
    owner = torch.tensor([episode for episode, _ in held.places])
    gains = [1 - e[owner == k].sum() / c[owner == k].sum().clamp_min(1e-9) for k in owner.unique()]
    low, high = bootstrap_interval(torch.stack(gains))
    return {
        "gain": (1 - e.mean() / c.mean()).item(),
        "gain_one_step": steps[0],
        "gain_by_step": steps,
        "gain_low": low,
        "gain_high": high,
        "gain_other_actions": (1 - o.mean() / c.mean()).item(),
        "energy": e.mean().item(),
        "energy_copy": c.mean().item(),
    }


def build_world(start: Start, c: ActionConfig) -> WorldModel:
    try:
        predictor = ActionPredictor(start.encoder.dim, c.action_dim, c.width, c.depth, c.heads, c.action_tokens)
    except ValueError as fault:
        raise UserError(f"action: {fault}") from fault
    layers = len(start.encoder.vit.blocks) + 1
    if c.layers is not None and c.layers > layers:
        raise UserError(f"action.layers is {c.layers}, but there are {layers} with the input")
    return WorldModel(start.encoder, predictor, c.history, c.layers)


def check_action(config: Any) -> None:
    """UserError for episodes that can't be had, before any work."""
    c: ActionConfig = config.action
    longest = c.history + max(c.horizon, c.rollout)
    if c.episodes.source == "generated" and c.episodes.frames < longest:
        raise UserError(
            f"videos shorter than the horizon: action.episodes.frames is {c.episodes.frames}, "
            f"{c.history} frames of history and {longest - c.history} of horizon need {longest}"
        )
    if c.episodes.source == "generated" and c.action_dim != 7:
        raise UserError(f"action.action_dim is {c.action_dim}, generated episodes have actions of 7 dims")
    if c.episodes.source != "generated" and (c.episodes.root is None or not c.episodes.root.exists()):
        raise UserError(f"action.episodes.root {c.episodes.root} does not exist")


def run_action(config: Any, folder: Path, device: torch.device) -> dict[str, Any]:
    """Train the world model and write action.json and action.safetensors; returns the manifest's entry."""
    c: ActionConfig = config.action
    start = load_start(config, "action")
    size = c.size or int(start.scale["size"])
    if size % start.encoder.unit:
        raise UserError(f"action.size {size} is not a multiple of the encoder's units of {start.encoder.unit} pixels")
    longest = c.history + max(c.horizon, c.rollout)
    train, held = build_views(c.episodes, config.seed, size, longest)
    for views in (train, held):
        check_actions(views, c.action_dim)
    about = train.about | {"clips": len(train), "held_out": len(held), "held_out_names": held.names[:20]}
    say(f"action: {len(train)} episodes ({about['source']}), {len(held)} held out, encoder of {start.folder}")
    world = build_world(start, c).to(device)
    scale = torch.cat(train.actions).std(0)
    world.predictor.scale.copy_(torch.where(scale > 1e-8, scale, 1.0))
    items, phase = latent_phase(world, c, train, held, start, size, device)
    depends = {"data": about, "encoder": start.sha256, "action": c.model_dump(mode="json")}
    first, last = fit_phase("action", phase, items, c, config.seed, folder, device, depends)
    files = save_action(folder, phase, c, start, size)
    say(
        f"action: {last['gain']:.1%} below copying the last frame over {c.horizon} steps "
        f"({last['gain_other_actions']:.1%} when told another episode's actions)"
    )
    names = {"gain": f"over {c.horizon} steps", "gain_one_step": "one step", "gain_other_actions": "other actions"}
    pictures = curves(folder, names, "share of the copied frame's energy saved")
    return entry(folder, start, files, about, first, last) | {"pictures": pictures}


def latent_phase(
    world: WorldModel, c: ActionConfig, train: Views, held: Views, start: Start, size: int, device: torch.device
) -> tuple[LatentEpisodes, ActionPhase]:
    """Windows to train on, and the phase with its held-out windows."""
    latents = [encode_views(world, views, start.scale, device, "action") for views in (train, held)]
    phase = ActionPhase(world, c, world.places(size, size, world.predictor.scale)).to(device)
    phase.held = LatentEpisodes(latents[1], held.actions, c.history + c.horizon)
    return LatentEpisodes(latents[0], train.actions, c.window), phase


def save_action(folder: Path, phase: ActionPhase, c: ActionConfig, start: Start, size: int) -> list[Path]:
    file = folder / "action.safetensors"
    save_tensors(file, phase.predictor.state_dict())
    keys = ("action_dim", "history", "layers", "width", "depth", "heads", "action_tokens", "energy")
    about = {"version": 1, "size": size} | {key: getattr(c, key) for key in keys}
    write_json(folder / "action.json", about | link(folder, start) | {"sha256": sha256_file(file)})
    return [file]


def load_world(folder: Path) -> tuple[WorldModel, dict[str, Any]]:
    """The world model that `save_action` wrote, in eval mode, and what there is to know about it: `size`, the pixels'
    `mean` and `std`, `energy`."""
    about = read_json(folder / "action.json", "world model")
    file = folder / "action.safetensors"
    state = load_tensors(file, "world model")
    if sha256_file(file) != about["sha256"]:
        raise UserError(f"{file} is damaged: its sha256 is not the recorded one")
    place = linked_encoder(folder, about)
    encoder = load_encoder(place)
    keys = ("action_dim", "width", "depth", "heads", "action_tokens")
    predictor = ActionPredictor(encoder.dim, *(about[key] for key in keys))
    load_strict(predictor, state, file)
    known = read_json(place / "encoder.json", "encoder")["input"]
    world = WorldModel(encoder, predictor, about["history"], about["layers"]).eval()
    return world, about | {"mean": known["mean"], "std": known["std"]}
