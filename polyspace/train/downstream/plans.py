"""Plans of a world model beside what was really done: CEM from a held-out window's start to its last frame."""

from typing import Any

import torch
from torch import Tensor

from polyspace.losses.energy import Kind, energy
from polyspace.models.action import ActionPredictor
from polyspace.planning.cem import CEMPlanner
from polyspace.train.downstream.episodes import LatentEpisodes
from polyspace.utils.metrics import group_interval

WINDOWS = 16  # plans; one an episode before a second of any
SPAN = 3.0  # actions are searched within so many standard deviations of the training ones


def spread_windows(groups: Tensor, most: int = WINDOWS) -> list[int]:
    """Items from as many groups as there are, the middle ones of each first taken."""
    queues = []
    for group in groups.unique().tolist():
        own = (groups == group).nonzero().flatten().tolist()
        queues.append(sorted(own, key=lambda i: abs(i - own[len(own) // 2])))
    out: list[int] = []
    while len(out) < min(most, len(groups)):
        out += [queue.pop(0) for queue in queues if queue]
    return out[:most]


@torch.no_grad()
def plans(
    predictor: ActionPredictor,
    held: LatentEpisodes,
    places: Tensor,
    history: int,
    kind: Kind,
    learned: Tensor,
    seed: int = 0,
) -> dict[str, Any]:
    """`windows`: of each the actions taken and planned (S,A), and the energy at the goal of both and of no action.
    `miss`: mean distance of the plans' summed actions from those taken, in standard deviations of an action; beside it
    that of no action, of the mean of the actions `learned` from (n,A), and of the plan for another episode's goal. The
    interval is of plan − plan for another goal, over episodes: only that difference says that the goal was used."""
    rows = spread_windows(held.groups)
    batch = held.batch(torch.tensor(rows)).to(places.device)
    assert batch.features is not None and batch.actions is not None
    z, scale, h = batch.features["latents"], predictor.scale, history
    taken = batch.actions[:, h - 1 :]
    used = (learned.std(0) > 1e-8).to(scale.device)  # what never changed is not searched
    bound = torch.where(used, SPAN * scale, 1e-6).tolist()
    made, energies = [], []
    for i in range(len(rows)):
        price = _Price(predictor, z[i], batch.actions[i], places, h, kind)
        planner = CEMPlanner(
            taken.shape[1],
            taken.shape[2],
            low=[-b for b in bound],
            high=bound,
            std=1 / SPAN,
            device=places.device,
        )
        plan = planner.plan(price, generator=torch.Generator(places.device).manual_seed(seed + i))[0]
        made.append(plan)
        energies.append(price(torch.stack([plan, taken[i], torch.zeros_like(plan)])[None])[0].tolist())
    planned = torch.stack(made)

    def miss(actions: Tensor) -> Tensor:
        return ((actions.sum(1) - taken.sum(1)) / scale)[:, used].norm(dim=-1).cpu()

    far, mean = miss(planned), learned.mean(0).to(taken).expand_as(taken)
    found: dict[str, Any] = {
        "miss": far.mean().item(),
        "miss_no_action": miss(torch.zeros_like(taken)).mean().item(),
        "miss_mean_action": miss(mean).mean().item(),
    }
    groups = held.groups[rows]
    other = elsewhere(groups)
    if other is not None:
        swapped = miss(planned[other])
        found["miss_other_goal"] = swapped.mean().item()
        found["difference_low"], found["difference_high"] = group_interval(far - swapped, groups)
    windows = [
        {
            "taken": taken[i].tolist(),
            "planned": planned[i].tolist(),
            **dict(zip(("energy_planned", "energy_taken", "energy_no_action"), energies[i], strict=True)),
        }
        for i in range(len(rows))
    ]
    return found | {"action_std": scale.tolist(), "windows": windows}


def elsewhere(groups: Tensor) -> Tensor | None:
    """For each window one of another group; None for a single group."""
    if len(groups.unique()) < 2:
        return None
    n = len(groups)
    return torch.tensor([next(j % n for j in range(i + 1, i + n) if groups[j % n] != groups[i]) for i in range(n)])


class _Price:
    """Energy between the last predicted latents and the last frame's, of actions (1,K,S,A) -> (1,K)."""

    def __init__(
        self, predictor: ActionPredictor, latents: Tensor, actions: Tensor, places: Tensor, history: int, kind: Kind
    ) -> None:
        self.predictor, self.places, self.history, self.kind = predictor, places, history, kind
        self.known, self.goal, self.past = latents[:history], latents[-1], actions[: history - 1]

    def __call__(self, actions: Tensor) -> Tensor:
        k = actions.shape[1]
        known, past = self.known.expand(k, *self.known.shape), self.past.expand(k, *self.past.shape)
        out = self.predictor.rollout(known, past, actions[0].to(known.dtype), self.places, self.history)[:, -1]
        return energy(out, self.goal.expand_as(out), self.kind).mean(1)[None]
