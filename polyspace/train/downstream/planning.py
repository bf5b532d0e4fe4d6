"""Planning from images: what a world model makes of an environment's pictures, as a cost for the planner."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from polyspace.losses.energy import energy
from polyspace.models.action import WorldModel
from polyspace.planning.cem import Cost


@runtime_checkable
class Pictured(Protocol):
    """An environment that can be looked at."""

    action_dim: int

    def state(self) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> np.ndarray: ...

    def render(self) -> np.ndarray: ...


class Watched:
    """An environment whose pictures and actions are kept: all that a model's planner may see."""

    def __init__(self, env: Pictured) -> None:
        self.env, self.action_dim = env, env.action_dim
        self.images: list[np.ndarray] = [env.render()]
        self.actions: list[np.ndarray] = []

    def state(self) -> np.ndarray:
        """For the judge, not for the planner."""
        return self.env.state()

    def step(self, action: np.ndarray) -> np.ndarray:
        state = self.env.step(action)
        self.images.append(self.env.render())
        self.actions.append(action)
        return state


class LatentCost:
    """Cost of action sequences: energy between predicted latents and the goal image's, on the grid of cells, plus
    `keypoint_weight` times the way between their keypoints' places, in standard deviations of an action. Both are
    summed over the steps (eb_jepa found the sum better than the last step alone).

    The grid's energy falls once things overlap with where they shall be; the keypoints' way leads there. `about` as of
    `load_world`; `device` is the world's own by default. `chunk` bounds how many candidates are rolled out at a time.
    """

    def __init__(
        self,
        world: WorldModel,
        about: dict[str, Any],
        goal: UInt8[np.ndarray, "H W 3"],
        device: torch.device | str | None = None,
        chunk: int = 256,
        keypoint_weight: float = 1.0,
    ) -> None:
        if goal.shape[:2] != (about.get("size", goal.shape[0]),) * 2:
            raise ValueError(
                f"the world model learned from {about['size']}×{about['size']} pixels, not {goal.shape[:2]}"
            )
        if device is None:
            device = next((p.device for p in world.parameters()), torch.device("cpu"))
        self.world, self.kind, self.chunk = world, about["energy"], chunk
        self.keypoint_weight = keypoint_weight if world.keypoints is not None else 0.0
        self.mean, self.std = (torch.tensor(about[key], device=device) for key in ("mean", "std"))
        self.places = world.places(goal.shape[0], goal.shape[1], self.mean)
        self.goal = self.encode([goal])

    def encode(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Float[Tensor, "T N D"]:
        pixels = torch.from_numpy(np.stack(images)).to(self.mean.device).float() / 255
        return self.world.encode((pixels - self.mean) / self.std)

    def __call__(self, seen: Watched) -> Cost:
        """The cost of the present moment, from the last pictures and the actions between them."""
        frames = min(self.world.history, len(seen.images))
        known = self.encode(seen.images[-frames:])
        done = np.array(seen.actions[len(seen.actions) - frames + 1 :], np.float32).reshape(frames - 1, seen.action_dim)
        past = torch.from_numpy(done).to(self.mean.device)

        def cost(actions: Float[Tensor, "1 K S A"]) -> Float[Tensor, "1 K"]:
            return torch.cat([self._price(known, past, part) for part in actions[0].split(self.chunk)])[None]

        return cost

    @torch.no_grad()
    def _price(
        self, known: Float[Tensor, "C N D"], past: Float[Tensor, "P A"], actions: Float[Tensor, "K S A"]
    ) -> Float[Tensor, " K"]:
        k = len(actions)
        start, before = known.expand(k, *known.shape), past.expand(k, *past.shape)
        out = self.world.predictor.rollout(start, before, actions, self.places, self.world.history)
        cost = energy(out, self.goal[:, None].expand_as(out), self.kind).mean(2).sum(1)
        if self.keypoint_weight:
            assert self.world.keypoints is not None
            there, goal = (self.world.keypoints(x, self.places) for x in (out, self.goal))
            cost = cost + self.keypoint_weight * (there - goal).norm(dim=-1).sum(1)
        return cost
