"""Planning from pictures: what the planner sees, and that it gets where the pictures say."""

import numpy as np
import torch

from polyspace.models.action import ActionPredictor, WorldModel
from polyspace.models.keypoints import ActionKeypoints
from polyspace.planning.cem import CEMPlanner
from polyspace.planning.control import control
from polyspace.train.downstream.planning import LatentCost, Watched

SIDE, CELLS = 16, 4


class Dot:
    """A dot on a line of 16 pixels, moved by the first action; the picture shows it as one bright column of cells."""

    action_dim = 1

    def __init__(self) -> None:
        self.place = 4.0
        self.seen = 0

    def state(self) -> np.ndarray:
        self.seen += 1
        return np.array([self.place])

    def step(self, action: np.ndarray) -> np.ndarray:
        self.place = float(np.clip(self.place + 3 * action[0], 0, SIDE - 1))
        return np.array([self.place])

    def render(self) -> np.ndarray:
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        columns = np.arange(SIDE)
        picture[:] = (255 * np.exp(-((columns - self.place) ** 2) / 8))[None, :, None]
        return picture


class KnownWorld(WorldModel):
    """Latents are the brightness of columns; the predictor knows the dot's law. Stands in for a trained model."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.history, self.predictor, self.keypoints = 1, Law(), None

    def encode(self, frames):
        return frames[:, 0, :, :1]  # (B,W,1)

    def places(self, height, width, like):
        return torch.zeros(width, 3)


class Law(ActionPredictor):
    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def rollout(self, latents, past, actions, places, history):
        columns = torch.arange(float(SIDE))
        place = (latents[:, -1, :, 0] * columns).sum(1) / latents[:, -1, :, 0].sum(1)
        out = []
        for s in range(actions.shape[1]):
            place = (place + 3 * actions[:, s, 0]).clamp(0, SIDE - 1)
            out.append(torch.exp(-((columns - place[:, None]) ** 2) / 8)[..., None])
        return torch.stack(out, 1)


def plan_to(goal_place: float) -> tuple[Watched, bool]:
    goal = Dot()
    goal.place = goal_place
    cost = LatentCost(KnownWorld(), {"energy": "l1", "mean": [0.0] * 3, "std": [1.0] * 3}, goal.render(), chunk=10)
    watched = Watched(Dot())
    planner = CEMPlanner(3, 1, samples=64, iterations=5, elites=8, std=1.0)
    outcome = control(watched, planner, cost, lambda s: abs(s[0] - goal_place) < 1, 8)
    return watched, outcome.success


def test_pictures_alone_lead_to_the_goal_picture():
    watched, success = plan_to(11.0)
    assert success and abs(watched.env.place - 11) < 1
    assert len(watched.images) == len(watched.actions) + 1


def test_the_price_is_the_same_however_many_are_rolled_out_at_a_time():
    about = {"energy": "l1", "mean": [0.0] * 3, "std": [1.0] * 3}
    goal, actions = Dot().render(), torch.rand(1, 30, 3, 1)
    prices = [LatentCost(KnownWorld(), about, goal, chunk=k)(Watched(Dot()))(actions) for k in (7, 256)]
    assert prices[0].shape == (1, 30) and torch.allclose(*prices, atol=1e-6)


def test_standing_at_the_goal_is_cheapest():
    about = {"energy": "l1", "mean": [0.0] * 3, "std": [1.0] * 3}
    price = LatentCost(KnownWorld(), about, Dot().render())(Watched(Dot()))
    still, away = torch.zeros(1, 1, 3, 1), torch.ones(1, 1, 3, 1)
    assert price(still).item() < 0.03 < price(away).item()


class Narrow(ActionKeypoints):
    """Knows the column of the brightest cell."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, latents, places):
        return latents[..., 0].argmax(-1, keepdim=True) / 3


def test_keypoints_lead_where_the_cells_alone_show_no_way():
    about = {"energy": "l1", "mean": [0.0] * 3, "std": [1.0] * 3}
    world, goal = KnownWorld(), Dot()
    goal.place = 14.0
    near, nearer = torch.full((1, 1, 1, 1), -0.3), torch.full((1, 1, 1, 1), 0.3)  # from 4 to 3.1 or 4.9, far from 14
    flat = LatentCost(world, about, goal.render())(Watched(Dot()))
    assert abs(flat(near) - flat(nearer)).item() < 1e-3
    world.keypoints = Narrow()
    sloped = LatentCost(world, about, goal.render())(Watched(Dot()))
    assert (sloped(near) - sloped(nearer)).item() > 0.5
    off = LatentCost(world, about, goal.render(), keypoint_weight=0.0)(Watched(Dot()))
    assert torch.equal(off(near), flat(near))
