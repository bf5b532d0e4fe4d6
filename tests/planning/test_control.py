"""The control loop on a point of which everything is known."""

import numpy as np
import pytest
import torch

from polyspace.planning.cem import CEMPlanner
from polyspace.planning.control import control, random_control

GOAL = np.array([0.8, -0.4])


class Point:
    """A point that moves by a fifth of the action."""

    action_dim = 2

    def __init__(self):
        self.at, self.taken = np.zeros(2), []

    def state(self):
        return self.at.copy()

    def step(self, action):
        self.taken.append(action)
        self.at = self.at + 0.2 * action
        return self.state()


def make_cost(env):
    at = torch.from_numpy(env.state()).float()
    goal = torch.from_numpy(GOAL).float()
    return lambda a: (at + 0.2 * a.cumsum(2) - goal).norm(dim=-1).sum(-1)


def arrived(state):
    return np.linalg.norm(state - GOAL) < 0.05


@pytest.mark.parametrize("execute", [1, 2, 3])
def test_the_point_arrives_and_the_outcome_tells_its_path(execute):
    env = Point()
    outcome = control(env, CEMPlanner(3, 2), make_cost, arrived, 20, execute=execute)
    assert outcome.success and 4 <= outcome.steps <= 8  # four full steps at the least: 0.8 / 0.2
    assert outcome.steps == len(env.taken) == len(outcome.states) - 1
    assert np.array_equal(outcome.states[0], np.zeros(2)) and np.array_equal(outcome.states[-1], env.at)
    assert 0 < outcome.seconds_in_cost < outcome.seconds_planning


@pytest.mark.parametrize("execute", [1, 2, 3])
def test_the_step_limit_holds_and_a_plan_serves_for_as_many_steps_as_asked(execute):
    asked = []

    def counted(env):
        asked.append(len(env.taken))
        return make_cost(env)

    outcome = control(Point(), CEMPlanner(3, 2, iterations=1), counted, lambda state: False, 7, execute=execute)
    assert not outcome.success and outcome.steps == 7 and len(outcome.states) == 8
    assert asked == list(range(0, 7, execute))


def test_a_plan_starts_at_the_last_one_shifted_by_what_was_done():
    class Spy(CEMPlanner):
        def plan(self, cost, batch_size=1, generator=None, init=None):
            starts.append(init)
            plans.append(super().plan(cost, batch_size, generator, init))
            return plans[-1]

    starts, plans = [], []
    control(Point(), Spy(4, 2), make_cost, lambda state: False, 4, execute=2)
    assert starts[0] is None
    assert torch.equal(starts[1], plans[0][:, [2, 3, 3, 3]])


def test_the_seed_decides_the_path():
    def path(seed):
        generator = torch.Generator().manual_seed(seed)
        return control(Point(), CEMPlanner(3, 2), make_cost, arrived, 5, generator=generator).states

    assert np.array_equal(path(1), path(1))
    assert not np.array_equal(path(1), path(2))


def test_more_steps_than_planned_cannot_be_carried_out():
    with pytest.raises(ValueError, match="execute"):
        control(Point(), CEMPlanner(3, 2), make_cost, arrived, 5, execute=4)


def test_the_random_policy_stays_in_bounds_holds_its_actions_and_seldom_arrives():
    env = Point()
    outcome = random_control(env, arrived, 30, generator=torch.Generator().manual_seed(0), hold=3)
    taken = np.stack(env.taken)
    assert (np.abs(taken) <= 1).all() and outcome.steps == len(taken)
    assert np.array_equal(taken[0], taken[2]) and not np.array_equal(taken[2], taken[3])
    wins = [random_control(Point(), arrived, 8, generator=torch.Generator().manual_seed(s)).success for s in range(40)]
    assert sum(wins) < 12
