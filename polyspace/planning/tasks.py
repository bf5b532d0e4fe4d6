"""Push-T tasks of graded difficulty: reach a place, push the block a little, push it far."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from polyspace.planning.pusht import AGENT, AGENT_RADIUS, ANGLE, ARENA, BLOCK_REACH, PushT, State, centre_of_mass

States = Float64[np.ndarray, "K S 10"]
Numbers = np.ndarray | np.floating  # one for each state, or just one
SWING = 50.0  # world units that a radian of the block's angle counts in the oracle's cost: the block's own size
TOUCH = 50.0  # an agent this near the block's centre of mass counts as there
CLEAR = 100.0  # and at this distance it passes by without touching
APPROACH = 0.2  # weight of the agent's way to where it can push, so that a plan starts before it touches the block


@dataclass(frozen=True)
class Task:
    """A task: `draw(env, generator)` gives start and goal, both states of the simulator; `steps` is the limit.

    Success: the agent (reach) or the block's centre of mass (push) within `near` world units of the goal's, and for a
    push the block's angle within `turn` radians.
    """

    name: str
    steps: int
    near: float
    turn: float
    draw: Callable[[PushT, np.random.Generator], tuple[State, State]]
    pushes: bool = True

    def success(self, state: State, goal: State) -> bool:
        if not self.pushes:
            return bool(np.linalg.norm(state[AGENT] - goal[AGENT]) < self.near)
        off, turned = block_error(state, goal)
        return bool(off < self.near and turned < self.turn)

    def oracle_cost(self, states: States, goal: State) -> Float64[np.ndarray, " K"]:
        """What a planner that knows true states minimises: distance to the goal, summed over the steps."""
        if not self.pushes:
            return np.linalg.norm(states[..., AGENT] - goal[AGENT], axis=-1).sum(-1)
        off, turned = block_error(states, goal)
        approach = APPROACH * np.minimum(off / TOUCH, 1)  # which way to push says little once the block is there
        return (off + SWING * turned + approach * way_to_push(states, goal)).sum(-1)


def block_error(states: Float64[np.ndarray, "*n 10"], goal: State) -> tuple[Numbers, Numbers]:
    """Distance of the centres of mass in world units, and the angle between the two poses in 0..π."""
    off = np.linalg.norm(centre_of_mass(states) - centre_of_mass(goal), axis=-1)
    return off, np.abs((states[..., ANGLE] - goal[ANGLE] + np.pi) % (2 * np.pi) - np.pi)


def way_to_push(states: Float64[np.ndarray, "*n 10"], goal: State) -> Numbers:
    """About how far the agent must go, around the block if need be, to where a push leads to the goal; world units."""
    centre = centre_of_mass(states)
    back, out = centre - centre_of_mass(goal), states[..., AGENT] - centre
    far = np.linalg.norm(out, axis=-1)
    cosine = (back * out).sum(-1) / np.maximum(np.linalg.norm(back, axis=-1) * far, 1e-9)
    angle = np.arccos(np.clip(cosine, -1, 1))
    ring = TOUCH + (CLEAR - TOUCH) * np.minimum(angle, 1)  # it goes around at arm's length and closes in behind
    return np.abs(far - ring) + CLEAR * angle


def draw_reach(env: PushT, generator: np.random.Generator) -> tuple[State, State]:
    """The goal is the start with the agent elsewhere, 120 to 240 units away."""
    while True:
        start = env.reset(generator)
        goal = start.copy()
        angle, length = generator.uniform(-np.pi, np.pi), generator.uniform(120, 240)
        goal[AGENT] += length * np.array([np.cos(angle), np.sin(angle)])
        if goal[AGENT].min() > 40 and goal[AGENT].max() < ARENA - 40 and env.gap(goal) > AGENT_RADIUS:
            return start, goal


def draw_push(
    env: PushT, generator: np.random.Generator, *, least: float, most: float, beside: bool
) -> tuple[State, State]:
    """The goal is where a straight push in the simulator has moved the block by `least` to `most` units.

    The push starts behind the block and heads near its centre of mass. The agent starts there (`beside`), or anywhere
    on the table.
    """
    while True:
        anywhere = env.reset(generator)
        angle, miss = generator.uniform(-np.pi, np.pi), generator.uniform(-20, 20)
        ahead = np.array([np.cos(angle), np.sin(angle)])
        behind = anywhere.copy()
        behind[AGENT] = centre_of_mass(behind) - (BLOCK_REACH + 30) * ahead + miss * np.array([-ahead[1], ahead[0]])
        if behind[AGENT].min() < 30 or behind[AGENT].max() > ARENA - 30:
            continue
        goal = _push(env, behind, ahead, generator.uniform(least, most))
        if goal is not None and block_error(goal, behind)[0] < most + 15:
            return (behind if beside else anywhere), goal


def _push(env: PushT, state: State, ahead: np.ndarray, length: float, patience: int = 25) -> State | None:
    """The state once a push along `ahead` has moved the block by `length`; None if it slips off or nears a wall."""
    env.set_state(state)
    for _ in range(patience):
        after = env.step(0.8 * ahead)
        centre = centre_of_mass(after)
        if centre.min() < BLOCK_REACH or centre.max() > ARENA - BLOCK_REACH:
            return None
        if block_error(after, state)[0] >= length:
            return after
    return None


def _push_near(env: PushT, generator: np.random.Generator) -> tuple[State, State]:
    return draw_push(env, generator, least=35, most=60, beside=True)


def _push_far(env: PushT, generator: np.random.Generator) -> tuple[State, State]:
    return draw_push(env, generator, least=80, most=140, beside=False)


# Limits and tolerances are such that CEM on the true simulator (horizon 5, 64 samples, 5 iterations, std 1, a new plan
# each step) wins nine episodes in ten, and actions drawn evenly at most three.
TASKS = {
    task.name: task
    for task in (
        Task("reach", 15, 20.0, 0.0, draw_reach, pushes=False),
        Task("push_near", 25, 25.0, 0.4, _push_near),
        Task("push_far", 60, 30.0, 0.5, _push_far),
    )
}
