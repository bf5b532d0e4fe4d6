"""Planning from pictures in Push-T.

    python bench/planning.py --encoder outputs/pretrain --out docs/results/planning.json

Collects episodes in the simulator, trains the action phase on a frozen encoder, and plans from images to a goal image,
beside a random policy and an oracle: the same planner on the true simulator. A task counts where the oracle wins nine
episodes in ten and the random policy at most three.
"""

import argparse
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

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
from polyspace.utils.checkpoint_io import write_json, write_text
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
    parser.add_argument("--steps", type=int, default=6_000, help="updates of the world model")
    parser.add_argument("--trials", type=int, default=50, help="episodes a task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--processes", type=int, default=2, help="trials at a time, each with one thread")
    parser.add_argument("--set", action="append", default=[], help="further settings of the action phase, key=value")
    return parser.parse_args()


def learn(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The folder of the trained world model, and what the manifest says about it."""
    file = args.work / f"episodes_{args.episodes}_{args.size}.safetensors"
    if not file.is_file():
        made = collect(PushT(size=args.size), args.episodes, 16, seed=6)
        save_views(file, torch.from_numpy(made.video), torch.from_numpy(made.actions))
    more = {}
    for text in args.set:
        key, sign, value = text.partition("=")
        if not sign:
            raise SystemExit(f"--set {text}: expected key=value")
        more[key] = yaml.safe_load(value)
    action = {"steps": args.steps, "batch": 32, "width": 96, "rollout": 1, "change_weight": 0.5} | more
    action |= {"action_dim": 2, "size": args.size, "save_every": 1000, "eval_every": 2500}
    action |= {"episodes": {"source": "file", "root": file, "held_share": 0.1}}
    values = {"work_dir": args.work, "sequence": "action", "init_from": args.encoder, "action": action}
    return args.work / "action", run(validate(RunConfig, values))["phases"]["action"]


def trial(env: PushT, task: Task, number: int, who: str, model: Any) -> Outcome:
    """One episode: the same start, goal and noise for everybody."""
    start, goal = task.draw(env, np.random.default_rng([DRAWS, number]))
    noise = torch.Generator().manual_seed(number)
    if who.startswith("model"):
        env.set_state(goal)
        weight = 0.0 if who == "model without keypoints" else 1.0
        cost = LatentCost(*model, env.render(), keypoint_weight=weight)
    env.set_state(start)

    def won(state: np.ndarray) -> bool:
        return task.success(state, goal)

    if who == "random":
        return random_control(env, won, task.steps, generator=noise)
    if who == "random, held 4 steps":
        return random_control(env, won, task.steps, generator=noise, hold=4)
    planner = CEMPlanner(HORIZON, env.action_dim, **PLANNER)
    if who.startswith("model"):
        return control(Watched(env), planner, cost, won, task.steps, generator=noise)

    def oracle(env: PushT) -> Any:
        state = env.state()
        return lambda a: torch.from_numpy(task.oracle_cost(env.simulate(state, a[0].numpy()), goal))[None]

    return control(env, planner, oracle, won, task.steps, generator=noise)


def many(folder: Path, size: int, task: str, who: str, numbers: list[int]) -> list[Outcome]:
    """Some episodes, in a process of their own."""
    torch.set_num_threads(1)
    model = load_world(folder) if who.startswith("model") else None
    env = PushT(size=size)
    return [trial(env, TASKS[task], number, who, model) for number in numbers]


def measure(pool: Executor, args: argparse.Namespace, folder: Path, task: str, who: str) -> dict[str, Any]:
    """All trials of one policy, shared out among the processes."""
    shares = [list(range(args.trials))[i :: args.processes] for i in range(args.processes)]
    made = [pool.submit(many, folder, args.size, task, who, numbers) for numbers in shares]
    outcomes = [outcome for future in made for outcome in future.result()]
    wins = sum(o.success for o in outcomes)
    low, high = wilson_interval(wins, args.trials)
    planning = sum(o.seconds_planning for o in outcomes)
    row = {"wins": wins, "trials": args.trials, "rate": wins / args.trials, "low": low, "high": high}
    row["steps_when_won"] = float(np.mean([o.steps for o in outcomes if o.success])) if wins else None
    if planning:
        row["cost_share_of_planning"] = sum(o.seconds_in_cost for o in outcomes) / planning
        row["seconds_a_plan"] = planning / sum(o.steps for o in outcomes)
    say(f"{task}, {who}: {wins} of {args.trials} [{low:.2f}, {high:.2f}]")
    return row


def page(out: dict[str, Any]) -> str:
    """The table as Markdown."""
    world = out["world_model"]["last"]
    lines = [
        "# Planning from pictures in Push-T",
        "",
        "`python bench/planning.py`. Success and 95 % Wilson interval over the same starts and goals for all. The",
        "model sees pictures of now and of the goal, the oracle plans alike on the true simulator. The world model",
        f"saves {world['gain']:.1%} of the energy of copying the last frame over five held-out steps, and "
        f"{world['gain_other_actions']:.1%} when told another episode's actions;",
        f"its keypoints tell {world['keypoint_travel']:.0%} of the squared travel."
        if "keypoint_travel" in world
        else "",
        "",
        "| task | policy | success | steps when won | s a plan | of it the model |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in out["tasks"].items():
        for who, row in task["policies"].items():
            steps = "–" if row["steps_when_won"] is None else f"{row['steps_when_won']:.1f}"
            plan = "–" if "seconds_a_plan" not in row else f"{row['seconds_a_plan']:.2f}"
            share = f"{row['cost_share_of_planning']:.1%}" if who.startswith("model") else "–"
            rate = f"{row['wins']} of {row['trials']} [{row['low']:.2f}, {row['high']:.2f}]"
            lines.append(f"| {name} | {who} | {rate} | {steps} | {plan} | {share} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = arguments()
    folder, learned = learn(args)
    kept = ("first", "last", "seconds", "data", "encoder")
    out: dict[str, Any] = {"run": run_info("bench/planning.py"), "world_model": {key: learned[key] for key in kept}}
    out |= {"planner": PLANNER | {"horizon": HORIZON}, "tasks": {}}
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for name in args.tasks:
            who = ["oracle", "random", "random, held 4 steps", "model"]
            who += ["model without keypoints"] if name == "reach" else []
            rows = {policy: measure(pool, args, folder, name, policy) for policy in who}
            counts = rows["oracle"]["rate"] >= 0.9 and rows["random"]["rate"] <= 0.3
            share = rows["model"]["rate"] / max(rows["oracle"]["rate"], 1e-9)
            out["tasks"][name] = {"counts": counts, "model_over_oracle": share, "policies": rows}
            write_json(args.out, out)
            write_text(args.out.with_suffix(".md"), page(out))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
