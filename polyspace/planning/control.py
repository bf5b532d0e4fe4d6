"""Receding-horizon control: plan, carry out the first actions, look again; and the random policy to compare with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64

from polyspace.planning.cem import CEMPlanner, Cost


@runtime_checkable
class Env(Protocol):
    """What control needs of an environment; actions lie in [-1, 1]."""

    action_dim: int

    def state(self) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Outcome:
    """One episode: whether and after how many steps it succeeded, its states with the first, wall-clock seconds."""

    success: bool
    steps: int
    states: Float64[np.ndarray, "T D"]
    seconds_planning: float = 0.0
    seconds_in_cost: float = 0.0


def control(
    env: Env,
    planner: CEMPlanner,
    make_cost: Callable[[Any], Cost],
    success: Callable[[np.ndarray], bool],
    steps: int,
    *,
    execute: int = 1,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Plan and act until `success(state)` or for `steps` steps, with a new plan every `execute` steps.

    `make_cost(env)` gives the cost of the present moment and decides what the planner may see: true states for an
    oracle, a rendered image for a model. `success` judges from outside, after each step. Each plan starts at the last
    one, shifted by what was carried out and with its last action repeated. ValueError if `execute` exceeds the horizon.
    """
    if not 1 <= execute <= planner.horizon:
        raise ValueError(f"execute must lie in 1..horizon ({planner.horizon}), not {execute}")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    states, plan, in_plan, in_cost = [env.state()], None, 0.0, 0.0
    while len(states) <= steps:
        began = time.perf_counter()
        plan = planner.plan(make_cost(env), generator=generator, init=plan)
        in_plan += time.perf_counter() - began
        in_cost += planner.last.seconds_in_cost
        for action in plan[0, : min(execute, steps + 1 - len(states))].cpu().numpy():
            states.append(env.step(action))
            if success(states[-1]):
                return Outcome(True, len(states) - 1, np.stack(states), in_plan, in_cost)
        plan = torch.cat([plan[:, execute:], plan[:, -1:].expand(-1, execute, -1)], 1)
    return Outcome(False, steps, np.stack(states), in_plan, in_cost)


def random_control(
    env: Env, success: Callable[[np.ndarray], bool], steps: int, *, generator: torch.Generator, hold: int = 1
) -> Outcome:
    """Actions drawn evenly from [-1, 1], each held for `hold` steps: an outcome to compare with."""
    states = [env.state()]
    for step in range(steps):
        if step % hold == 0:
            action = (2 * torch.rand(env.action_dim, generator=generator) - 1).numpy()
        states.append(env.step(action))
        if success(states[-1]):
            return Outcome(True, step + 1, np.stack(states))
    return Outcome(False, steps, np.stack(states))
