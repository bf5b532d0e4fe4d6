"""What a world model imagines, beside what happens: planning in Push-T, or the error over steps on generated
episodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from polyspace.explorer.library import Picture
from polyspace.losses.energy import energy
from polyspace.models.action import WorldModel
from polyspace.planning.cem import CEMPlanner, Cost
from polyspace.planning.control import Outcome, control
from polyspace.planning.pusht import AGENT, ARENA, PushT, centre_of_mass
from polyspace.planning.tasks import TASKS
from polyspace.train.action_posttrain import load_world
from polyspace.train.downstream.episodes import generated_views
from polyspace.train.downstream.planning import LatentCost, Watched
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError
from polyspace.utils.reading import reads

OFFERED = ("reach", "push_near")  # push_far takes minutes on a CPU
HORIZON = 5
PLANNER: dict[str, Any] = {"samples": 64, "iterations": 5, "elites": 8, "std": 1.0}  # as in bench/planning.py
EPISODES, FRAMES, UNSEEN = 8, 12, 424_242  # UNSEEN: a seed far from those that episodes are trained on


@dataclass(frozen=True)
class World:
    """A run's world model; `source`: what it learned from (file, generated, recorded); `gain`: the share of copying
    the last frame's energy that it saves on held-out episodes."""

    model: WorldModel
    about: dict[str, Any]
    source: str
    gain: float

    def sentence(self) -> str:
        """What is shown of it, and how much it may be trusted."""
        side = "below" if self.gain >= 0 else "above"
        known = f"on held-out episodes its error was {abs(self.gain):.1%} {side} that of copying the last frame"
        if self.pusht:
            words = "Plans from pictures to a goal picture in Push-T, beside the same planner on the true simulator."
        else:
            words = "Not of Push-T: shown is how far what this model imagines is from what happens."
        return f"{words} When it was trained, {known}."

    @property
    def pusht(self) -> bool:
        """Files of episodes come from `polyspace collect`, which records Push-T: two dims of action."""
        return self.source == "file" and self.about["action_dim"] == 2


@dataclass(frozen=True)
class Rollout:
    """A sentence and a picture of it."""

    sentence: str
    picture: Picture


def open_world(run: Path | None, device: torch.device) -> tuple[World | None, str]:
    """The world model of a run, or a sentence why there is none to show."""
    if run is None:
        return None, "No run was given: start the app with --run DIR, a run of polyspace train with the action phase."
    if not (run / "action" / "action.json").is_file():
        return None, f"{run} has no action phase: run polyspace train with --sequence action."
    model, about = load_world(run / "action")
    manifest = read_json(run / "pipeline_manifest.json", "manifest")
    with reads(run / "pipeline_manifest.json", "manifest"):
        learned = manifest["phases"]["action"]
        told = str(learned["data"]["source"])
        world = World(model.to(device), about, told, float(learned["last"]["gain"]))
    if world.pusht:
        try:
            PushT(size=about["size"])
        except UserError as error:
            return None, str(error)
    elif told != "generated":
        words = f"The world model of {run} learned from {told} episodes with actions of {about['action_dim']} dims"
        return None, f"{words}; planning is shown for Push-T, and errors over steps for generated episodes."
    return world, ""


@torch.no_grad()
def imagined_error(
    world: World, frames: NDArray[np.uint8], actions: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energy between imagined and true latents after each action (mean over cells), from what the model may know
    before; and the same of copying the last known frame. frames (T,H,W,3), actions (T−1,A)."""
    reader = LatentCost(world.model, world.about, frames[0])
    latents = reader.encode(list(frames))
    told = torch.from_numpy(actions).to(latents)
    known = min(world.model.history, len(frames) - 1)
    out = world.model.predictor.rollout(
        latents[None, :known], told[None, : known - 1], told[None, known - 1 :], reader.places, known
    )[0]
    true, copied = latents[known:], latents[known - 1].expand_as(latents[known:])
    return tuple(energy(x, true, world.about["energy"]).mean(1).double().cpu().numpy() for x in (out, copied))  # type: ignore[return-value]


def generated_rollout(world: World) -> Rollout:
    """The error over steps on generated episodes that the model has not seen."""
    views = generated_views(EPISODES, UNSEEN, FRAMES, world.about["size"])
    errors = [
        imagined_error(world, frames.numpy(), actions.numpy())
        for frames, actions in zip(views.frames, views.actions, strict=True)
    ]
    model, copied = (np.mean([pair[i] for pair in errors], 0) for i in (0, 1))
    saved = 1 - model.sum() / copied.sum()
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    _error_axis(figure.add_subplot(), model, copied, world.about["energy"], "the last known frame, copied")
    side = "below" if saved >= 0 else "above"
    words = f"Mean over {EPISODES} generated episodes that the model has not seen, with their true actions: imagined"
    return Rollout(f"{words} latents are {abs(saved):.1%} {side} copying the last known frame.", _drawn(figure))


def pusht_rollout(world: World, task_name: str, seed: int) -> Rollout:
    """Plan from a random start to a random goal: from pictures with the world model, and on the true simulator."""
    task = TASKS[task_name]
    env = PushT(size=world.about["size"])
    start, goal = task.draw(env, np.random.default_rng(seed))
    env.set_state(goal)
    cost = LatentCost(world.model, world.about, env.render())
    env.set_state(start)
    device = cost.mean.device
    planner = CEMPlanner(HORIZON, env.action_dim, device=device, **PLANNER)

    def won(state: np.ndarray) -> bool:
        return task.success(state, goal)

    def oracle(env: PushT) -> Cost:
        state = env.state()

        def price(actions: Tensor) -> Tensor:
            found = task.oracle_cost(env.simulate(state, actions[0].cpu().numpy()), goal)
            return torch.from_numpy(found)[None]

        return price

    first = planner.plan(cost(Watched(env)))[0].cpu().numpy()
    pictures = [env.render(), *_watch(env, start, first)]
    errors = imagined_error(world, np.stack(pictures), first)
    env.set_state(start)
    by_model = control(Watched(env), planner, cost, won, task.steps)
    env.set_state(start)
    by_oracle = control(env, planner, oracle, won, task.steps)
    told = [_told(outcome, task.steps) for outcome in (by_model, by_oracle)]
    words = f"{task_name}, start and goal {seed}. Planned from pictures with the world model: {told[0]}; the same"
    picture = _pusht_figure(world, start, goal, [by_model, by_oracle], errors, task.pushes)
    return Rollout(f"{words} planner on the true simulator: {told[1]}.", picture)


def _watch(env: PushT, start: NDArray[np.float64], actions: NDArray[np.float32]) -> list[Picture]:
    env.set_state(start)
    out = []
    for action in actions:
        env.step(action)
        out.append(env.render())
    return out


def _told(outcome: Outcome, limit: int) -> str:
    return f"reached after {outcome.steps} steps" if outcome.success else f"not reached in {limit} steps"


def _pusht_figure(
    world: World,
    start: NDArray[np.float64],
    goal: NDArray[np.float64],
    outcomes: list[Outcome],
    errors: tuple[NDArray[np.float64], NDArray[np.float64]],
    pushes: bool,
) -> Picture:
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    table, curve = figure.subplots(1, 2, width_ratios=(1, 1.25))
    drawn = PushT(size=256)
    shown = []
    for state in (start, goal):
        drawn.set_state(state)
        shown.append(drawn.render().astype(np.float64))
    table.imshow((0.65 * shown[0] + 0.35 * shown[1]).astype(np.uint8), extent=(0, ARENA, ARENA, 0))
    names, looks = ("world model", "true simulator"), (("#c2410c", "-o"), ("#1d4ed8", "--s"))
    for name, (colour, style), outcome in zip(names, looks, outcomes, strict=True):
        way = centre_of_mass(outcome.states) if pushes else outcome.states[:, AGENT]
        table.plot(*way.T, style, color=colour, markersize=4, linewidth=1.6, label=f"planned with the {name}")
    end = centre_of_mass(goal) if pushes else goal[AGENT]
    table.plot(*end, "*", color="#15803d", markersize=15, markeredgecolor="white", label="goal")
    what = "block's centre of mass" if pushes else "agent"
    table.set(title=f"way of the {what} (goal faint)", xlabel="x (world units)", ylabel="y (world units)")
    table.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, frameon=False)
    _error_axis(curve, *errors, world.about["energy"], "the start's frame, copied")
    curve.set_title("first plan: imagined against true")
    return _drawn(figure)


def _error_axis(
    axis: Any, model: NDArray[np.float64], copied: NDArray[np.float64], kind: str, copied_word: str
) -> None:
    steps = np.arange(1, len(model) + 1)
    axis.plot(steps, model, "-o", color="#c2410c", markersize=4, label="imagined by the world model")
    axis.plot(steps, copied, "--", color="grey", label=copied_word)
    axis.set(xlabel="steps ahead", ylabel=f"energy to the true latents ({kind})", ylim=(0, None), xticks=steps)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _drawn(figure: Figure) -> Picture:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(110)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
