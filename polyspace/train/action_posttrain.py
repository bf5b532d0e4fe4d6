"""Phase 4, action: a world model on the frozen encoder's latents, for planning."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import TypedDict

from polyspace.models.action import ActionPredictor, WorldModel
from polyspace.models.keypoints import ActionKeypoints
from polyspace.models.vjepa.saved import load_encoder, read_encoder
from polyspace.train.downstream.common import (
    Start,
    curves,
    entry,
    fit_phase,
    link,
    linked_encoder,
    load_start,
)
from polyspace.train.downstream.episodes import (
    LatentEpisodes,
    Views,
    build_views,
    check_actions,
    encode_views,
)
from polyspace.train.downstream.plans import plans
from polyspace.train.downstream.world import ActionConfig, ActionPhase
from polyspace.train.machine import Machine
from polyspace.utils.checkpoint_io import load_built, load_tensors, read_json, save_tensors, sha256_file, write_sealed
from polyspace.utils.distrib import once
from polyspace.utils.errors import UserError
from polyspace.utils.log import say
from polyspace.utils.reading import check_form, reads


def build_world(start: Start, c: ActionConfig) -> WorldModel:
    try:
        predictor = ActionPredictor(start.encoder.dim, c.action_dim, c.width, c.depth, c.heads, c.action_tokens)
    except ValueError as fault:
        raise UserError(f"action: {fault}") from fault
    layers = len(start.encoder.vit.blocks) + 1
    if c.layers is not None and c.layers > layers:
        raise UserError(f"action.layers is {c.layers}, but there are {layers} with the input")
    points = ActionKeypoints(start.encoder.dim, c.action_dim, c.keypoints) if c.keypoints else None
    return WorldModel(start.encoder, predictor, c.history, c.layers, points)


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


def run_action(config: Any, folder: Path, machine: Machine) -> dict[str, Any]:
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
    device = machine.device
    world = build_world(start, c).to(device)
    scale = torch.cat(train.actions).std(0)
    world.predictor.scale.copy_(torch.where(scale > 1e-8, scale, 1.0))
    items, phase = latent_phase(world, c, train, held, start, size, device)
    depends = {"data": about, "encoder": start.sha256, "action": c.model_dump(mode="json")}
    first, last = fit_phase("action", phase, items, c, config.seed, folder, machine, depends)
    other = last.get("gain_other_actions")
    told = "" if other is None else f" ({_side(other)} when told another episode's actions)"
    say(f"action: energy {_side(last['gain'])} copying the last frame's over {c.horizon} steps{told}")
    names = {"gain": f"over {c.horizon} steps", "gain_one_step": "one step", "gain_other_actions": "other actions"}

    def written() -> dict[str, Any]:
        files = save_action(folder, phase, c, start, size)
        pictures = curves(folder, names, "share of the copied frame's energy saved")
        assert phase.held is not None
        learned = torch.cat(train.actions)
        made = plans(phase.predictor, phase.held, phase.places, c.history, c.energy, learned, config.seed)
        write_sealed(folder / "plans.json", made)
        found = {"pictures": pictures, "plans": str(folder / "plans.json")}
        return entry(folder, start, files, about, first, last) | found

    return once(written)


def _side(gain: float) -> str:
    return f"{abs(gain):.1%} {'below' if gain >= 0 else 'above'}"


def latent_phase(
    world: WorldModel, c: ActionConfig, train: Views, held: Views, start: Start, size: int, device: torch.device
) -> tuple[LatentEpisodes, ActionPhase]:
    """Windows to train on, and the phase with its held-out windows."""
    latents = [encode_views(world, views, start.scale, device, "action") for views in (train, held)]
    phase = ActionPhase(world, c, world.places(size, size, world.predictor.scale)).to(device)
    apart = c.keypoint_apart if c.keypoints else 0
    phase.held = LatentEpisodes(latents[1], held.actions, c.history + c.horizon, apart, held.groups)
    return LatentEpisodes(latents[0], train.actions, c.window, apart), phase


def save_action(folder: Path, phase: ActionPhase, c: ActionConfig, start: Start, size: int) -> list[Path]:
    file = folder / "action.safetensors"
    save_tensors(file, phase.state_dict())
    keys = ("action_dim", "history", "layers", "width", "depth", "heads", "action_tokens", "keypoints", "energy")
    about = {"version": 2, "size": size} | {key: getattr(c, key) for key in keys}
    write_sealed(folder / "action.json", about | link(folder, start) | {"sha256": sha256_file(file)})
    return [file]


class About(TypedDict):
    """What action.json has, of version 2."""

    size: int
    action_dim: int
    history: int
    layers: int | None
    width: int
    depth: int
    heads: int
    action_tokens: int
    keypoints: int
    energy: str
    encoder: str
    encoder_sha256: str
    sha256: str


def load_world(folder: str | Path) -> tuple[WorldModel, dict[str, Any]]:
    """The world model that `save_action` wrote, in eval mode, and what there is to know about it: `size`, the pixels'
    `mean` and `std`, `energy`."""
    folder = Path(folder)
    about = read_json(folder / "action.json", "world model", dict[str, Any])
    if about.get("version") != 2:
        raise UserError(
            f"{folder} was written by another release (version {about.get('version')!r:.40}); train action again"
        )
    check_form(about, About, folder / "action.json", "world model")
    file = folder / "action.safetensors"
    state = load_tensors(file, "world model")
    if sha256_file(file) != about["sha256"]:
        raise UserError(f"{file} is damaged: its sha256 is not the recorded one")
    place = linked_encoder(folder, about)
    encoder = load_encoder(place)
    keys = ("action_dim", "width", "depth", "heads", "action_tokens")
    if about["depth"] > len(state):
        raise UserError(f"{folder / 'action.json'} asks for {about['depth']} blocks, {file} holds {len(state)} tensors")

    def build() -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {"predictor": ActionPredictor(encoder.dim, *(about[key] for key in keys))}
        if about["keypoints"]:
            parts["keypoints"] = ActionKeypoints(encoder.dim, about["action_dim"], about["keypoints"])
        return nn.ModuleDict(parts)

    parts: Any = load_built(build, state, file)
    points = dict(parts.items()).get("keypoints")
    with reads(folder / "action.json", "world model"):
        world = WorldModel(encoder, parts["predictor"], about["history"], about["layers"], points).eval()
    known = read_encoder(place).get("input")
    if known is None:
        raise UserError(f"{place / 'encoder.json'} does not say what goes into the encoder; pretrain again")
    return world, about | {"mean": known["mean"], "std": known["std"]}
