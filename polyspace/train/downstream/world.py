"""The action phase's model in training: its losses, and held-out rollouts beside copying the last frame."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import validate
from polyspace.data.batch import VideoBatch
from polyspace.losses.energy import Kind, energy, energy_loss, global_mean
from polyspace.models.action import ActionPredictor, WorldModel
from polyspace.models.keypoints import explained_travel, travel_loss
from polyspace.train.downstream.common import PhaseConfig
from polyspace.train.downstream.episodes import EpisodeConfig, LatentEpisodes
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.errors import UserError
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
    keypoints: int = Field(4, ge=0, description="keypoints that tell where what the actions move is; 0: none")
    keypoint_apart: int = Field(8, ge=1, description="steps over which keypoints learn the sum of the actions")

    @property
    def window(self) -> int:
        """Frames that one item of training needs."""
        return self.history + max(1, self.rollout)


class ActionPhase(Phase):
    """loss = E(teacher-forced prediction of every next frame) + weight · E(rollout on own predictions) + what the
    keypoints' travel is off by; keypoints learn from true latents and actions only, and the predictor not from them."""

    places: Tensor

    def __init__(self, world: WorldModel, config: ActionConfig, places: Tensor) -> None:
        super().__init__()
        self.predictor, self.keypoints, self.config = world.predictor, world.keypoints, config
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
        metrics = {"teacher_forced": loss}
        if c.rollout > 1:
            known = torch.cat([z[:, :h], forced[:, -1:]], 1)[:, -h:]
            out = self.predictor.rollout(known, a[:, 1:h], a[:, h : h + c.rollout - 1], self.places, h)
            metrics["rollout"] = energy_loss(out, z[:, h + 1 : h + c.rollout], weight[:, h:], c.energy)
            loss = loss + c.rollout_weight * metrics["rollout"]
        if self.keypoints is not None:
            metrics["travel"] = travel_loss(*self.travel(batch))
            loss = loss + metrics["travel"]
        return StepOutput(loss, {key: value.detach() for key, value in metrics.items()})

    def travel(self, batch: VideoBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Places of two frames of each item, and the sum of the actions between in their standard deviations."""
        assert self.keypoints is not None and batch.features is not None
        first, later = (self.keypoints(batch.features[key], self.places) for key in ("first", "later"))
        return first, later, batch.features["travel"] / self.predictor.scale

    def evaluate(self, step: int) -> dict[str, Any]:
        assert self.held is not None
        return open_loop(self.predictor, self.held, self.places, self.config) | self.held_travel()

    @torch.no_grad()
    def held_travel(self) -> dict[str, Any]:
        """Share of the held-out squared travel that the keypoints tell, of all dims together and of each."""
        if self.keypoints is None or self.held is None:
            return {}
        rows = torch.arange(len(self.held)).split(64)
        told = [self.travel(self.held.batch(part).to(self.places.device)) for part in rows]
        whole, dims = explained_travel(*(torch.cat(x).cpu() for x in zip(*told, strict=True)))
        return {"keypoint_travel": whole.item(), "keypoint_travel_by_dim": dims.tolist()}


def change_weight(latents: Tensor, share: float) -> Tensor:
    """Weights of the cells of frames 1 … (B,T−1,N), mean 1: `share` of it as a cell changes from the frame before, so
    that a small thing which moves is not lost among what stands still."""
    change = (latents[:, 1:] - latents[:, :-1]).abs().mean(-1)
    return 1 - share + share * change / global_mean(change).clamp_min(1e-9)


@torch.no_grad()
def open_loop(predictor: ActionPredictor, held: LatentEpisodes, places: Tensor, config: ActionConfig) -> dict[str, Any]:
    """Rollouts over `horizon` steps from `history` frames, over all held-out windows: the energy of each step beside
    that of the last known frame held still, and beside the same model told the actions of a window of another episode.
    The interval is over episodes, whose windows and cameras are no independent trials; of a single episode there is
    neither an interval nor another's actions."""
    model, copied, other = [], [], []
    h, elsewhere = config.history, held.elsewhere()
    for rows in torch.arange(len(held)).split(64):
        batch = held.batch(rows).to(places.device)
        assert batch.features is not None and batch.actions is not None
        z, a = batch.features["latents"], batch.actions
        goal, runs = z[:, h:], [(model, a)]
        if elsewhere is not None:
            far = held.batch(elsewhere[rows]).actions
            assert far is not None
            runs.append((other, torch.cat([a[:, : h - 1], far.to(a.device)[:, h - 1 :]], 1)))
        for store, actions in runs:
            out = predictor.rollout(z[:, :h], actions[:, : h - 1], actions[:, h - 1 :], places, h)
            store.append(energy(out, goal, config.energy).mean(2).cpu())
        copied.append(energy(z[:, h - 1 : h].expand_as(goal), goal, config.energy).mean(2).cpu())
    e, c = torch.cat(model), torch.cat(copied)
    steps = (1 - e.mean(0) / c.mean(0)).tolist()
    found = {"gain": (1 - e.mean() / c.mean()).item(), "gain_one_step": steps[0], "gain_by_step": steps}
    if elsewhere is not None:
        gains = [1 - e[held.groups == k].sum() / c[held.groups == k].sum() for k in held.groups.unique()]
        found["gain_low"], found["gain_high"] = bootstrap_interval(torch.stack(gains))
        found["gain_other_actions"] = (1 - torch.cat(other).mean() / c.mean()).item()
    return found | {"energy": e.mean().item(), "energy_copy": c.mean().item(), "episodes": len(held.groups.unique())}
