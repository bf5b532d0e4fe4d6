"""Planning from pictures in Push-T.

    python bench/planning.py --encoder outputs/pretrain --out docs/results/planning.json

Collects episodes in the simulator, trains the action phase on a frozen encoder, and plans from images to a goal image,
beside a random policy and an oracle: the same planner on the true simulator. A task counts where the oracle wins nine
episodes in ten and the random policy at most three.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyspace.config import validate
from polyspace.planning.cem import CEMPlanner
from polyspace.planning.collect import collect
from polyspace.planning.control import Outcome, control, random_control
from polyspace.planning.pusht import PushT
from polyspace.planning.tasks import TASKS, Task
from polyspace.train.action_posttrain import load_world
from polyspace.train.downstream.episodes import save_views
from polyspace.train.downstream.planning import LatentCost, Watched
from polyspace.train.run import RunConfig, run
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.log import say
from polyspace.utils.metrics import wilson_interval
from polyspace.utils.run_info import run_info

PLANNER = {"samples": 64, "iterations": 5, "elites": 8, "std": 1.0}
HORIZON, DRAWS = 5, 300  # the seed of starts and goals played no part in any choice


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a pretrained encoder, or of a run")
    parser.add_argument("--work", type=Path, default=Path("outputs/planning"), help="folder of episodes and model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=1500, help="episodes of 16 steps to learn from")
    parser.add_argument("--steps", type=int, default=15_000, help="updates of the world model")
    parser.add_argument("--trials", type=int, default=50, help="episodes a task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--set", action="append", default=[], help="further settings of the action phase, key=value")
    return parser.parse_args()


def learn(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The folder of the trained world model, and what the manifest says about it."""
    file = args.work / "episodes.safetensors"
    if not file.is_file():
        made = collect(PushT(size=args.size), args.episodes, 16, seed=6)
        save_views(file, torch.from_numpy(made.video), torch.from_numpy(made.actions))
    import yaml

    more = {key: yaml.safe_load(value) for key, value in (x.split("=", 1) for x in args.set)}
    action = {"steps": args.steps, "batch": 32, "width": 96, "rollout": 1, "change_weight": 0.5} | more
    action |= {"action_dim": 2, "size": args.size, "save_every": 1000, "eval_every": 2500}
    action |= {"episodes": {"source": "file", "root": file, "held_share": 0.1}}
    values = {"work_dir": args.work, "sequence": "action", "init_from": args.encoder, "action": action}
    return args.work / "action", run(validate(RunConfig, values))["phases"]["action"]


def trial(env: PushT, task: Task, number: int, who: str, model: Any) -> Outcome:
    """One episode: the same start, goal and noise for everybody."""
    start, goal = task.draw(env, np.random.default_rng([DRAWS, number]))
    noise = torch.Generator().manual_seed(number)
    if who == "model":
        env.set_state(goal)
        cost = LatentCost(*model, env.render())
    env.set_state(start)

    def won(state: np.ndarray) -> bool:
        return task.success(state, goal)

    if who == "random":
        return random_control(env, won, task.steps, generator=noise)
    if who == "random, held 4 steps":
        return random_control(env, won, task.steps, generator=noise, hold=4)
    planner = CEMPlanner(HORIZON, env.action_dim, **PLANNER)
    if who == "model":
        return control(Watched(env), planner, cost, won, task.steps, generator=noise)

    def oracle(env: PushT) -> Any:
        state = env.state()
        return lambda a: torch.from_numpy(task.oracle_cost(env.simulate(state, a[0].numpy()), goal))[None]

    return control(env, planner, oracle, won, task.steps, generator=noise)


def measure(env: PushT, task: Task, who: str, trials: int, model: Any) -> dict[str, Any]:
    began = time.perf_counter()
    outcomes = [trial(env, task, number, who, model) for number in range(trials)]
    wins = sum(o.success for o in outcomes)
    low, high = wilson_interval(wins, trials)
    planning = sum(o.seconds_planning for o in outcomes)
    row = {"wins": wins, "trials": trials, "rate": wins / trials, "low": low, "high": high}
    row["steps_when_won"] = float(np.mean([o.steps for o in outcomes if o.success])) if wins else None
    row["seconds"] = round(time.perf_counter() - began, 1)
    if planning:
        row["cost_share_of_planning"] = sum(o.seconds_in_cost for o in outcomes) / planning
        row["seconds_a_plan"] = planning / sum(o.steps for o in outcomes)
    say(f"{task.name}, {who}: {wins} of {trials} [{low:.2f}, {high:.2f}]")
    return row


def main() -> None:
    args = arguments()
    folder, learned = learn(args)
    model, env = load_world(folder), PushT(size=args.size)
    kept = ("first", "last", "seconds", "data", "encoder")
    out: dict[str, Any] = {"run": run_info("bench/planning.py"), "world_model": {key: learned[key] for key in kept}}
    out |= {"planner": PLANNER | {"horizon": HORIZON}, "tasks": {}}
    for name in args.tasks:
        task, rows = TASKS[name], {}
        for who in ("oracle", "random", "random, held 4 steps", "model"):
            rows[who] = measure(env, task, who, args.trials, model)
        counts = rows["oracle"]["rate"] >= 0.9 and rows["random"]["rate"] <= 0.3
        share = rows["model"]["rate"] / max(rows["oracle"]["rate"], 1e-9)
        out["tasks"][name] = {"counts": counts, "model_over_oracle": share, "policies": rows}
        write_json(args.out, out)
    say(f"-> {args.out}")


if __name__ == "__main__":
    main()
