"""Planning with CEM in Push-T, on the simulator itself or from pictures with a world model.

    python examples/plan_with_cem.py --tasks reach push_near
    python examples/plan_with_cem.py --tasks reach --world outputs/planning/action

Needs the extra [robot]. The world model is what bench/planning.py trains (`--size` as there).
"""

import argparse

import numpy as np
import torch

from polyspace.planning.cem import CEMPlanner
from polyspace.planning.control import control
from polyspace.planning.pusht import PushT
from polyspace.planning.tasks import TASKS
from polyspace.train.action_posttrain import load_world
from polyspace.train.downstream.planning import LatentCost, Watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["reach"], choices=list(TASKS))
    parser.add_argument("--world", help="folder of a trained action phase; none: plan on the true simulator")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = PushT(size=args.size)
    planner = CEMPlanner(horizon=5, action_dim=env.action_dim, samples=64, iterations=5, std=1.0)
    for name in args.tasks:
        task = TASKS[name]
        start, goal = task.draw(env, np.random.default_rng(args.seed))

        def won(state: np.ndarray, task=task, goal=goal) -> bool:
            return task.success(state, goal)

        def true_cost(env: PushT, task=task, goal=goal):
            state = env.state()
            return lambda a: torch.from_numpy(task.oracle_cost(env.simulate(state, a[0].numpy()), goal))[None]

        cost, actor = true_cost, env
        if args.world:
            env.set_state(goal)
            cost = LatentCost(*load_world(args.world), env.render())
        env.set_state(start)
        if args.world:
            actor = Watched(env)
        done = control(actor, planner, cost, won, task.steps)
        print(f"{name}: {'reached' if done.success else 'not reached'} after {done.steps} of {task.steps} steps")


if __name__ == "__main__":
    main()
