"""Recordings of Push-T by a policy that knows no task: it wanders, and half of the time heads for the block."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from polyspace.planning.pusht import AGENT, BLOCK_REACH, PushT, centre_of_mass
from polyspace.utils.log import Progress

SMOOTH = 0.7  # how much of its noise an action takes over from the one before
LONGEST = 12  # steps for which an aim is held


@dataclass(frozen=True)
class Episodes:
    """E episodes of T actions: an image and a state before the first and after each."""

    video: UInt8[np.ndarray, "E T1 H W 3"]
    actions: Float32[np.ndarray, "E T 2"]
    states: Float64[np.ndarray, "E T1 10"]


def collect(env: PushT, episodes: int, steps: int, seed: int) -> Episodes:
    """Record `episodes` of `steps` actions from random states at rest; the seed decides all of it."""
    generator = np.random.default_rng(seed)
    video = np.empty((episodes, steps + 1, env.size, env.size, 3), np.uint8)
    actions = np.empty((episodes, steps, 2), np.float32)
    states = np.empty((episodes, steps + 1, env.state_dim))
    with Progress(episodes, "collect", "episode") as bar:
        for episode in range(episodes):
            states[episode, 0] = env.reset(generator)
            video[episode, 0] = env.render()
            policy = Wanderer(env.max_step, generator)
            for step in range(steps):
                actions[episode, step] = policy(states[episode, step])
                states[episode, step + 1] = env.step(actions[episode, step])
                video[episode, step + 1] = env.render()
            bar.step()
    return Episodes(video, actions, states)


class Wanderer:
    """Holds an aim for 3 to 12 steps: a direction or, as often, a point on the block; with smooth noise on top."""

    def __init__(self, max_step: float, generator: np.random.Generator) -> None:
        self.max_step, self.generator = max_step, generator
        self.noise, self.left = np.zeros(2), 0

    def __call__(self, state: Float64[np.ndarray, "10"]) -> Float64[np.ndarray, "2"]:
        draw = self.generator
        if self.left == 0:
            self.left, self.seeks = int(draw.integers(3, LONGEST + 1)), bool(draw.random() < 0.5)
            self.speed, self.offset = draw.uniform(0.3, 1), draw.uniform(-1, 1, 2) * BLOCK_REACH / 2
            angle = draw.uniform(-np.pi, np.pi)
            self.way = np.array([np.cos(angle), np.sin(angle)])
        self.left -= 1
        self.noise = SMOOTH * self.noise + np.sqrt(1 - SMOOTH**2) * draw.normal(scale=0.3, size=2)
        aim = self.way
        if self.seeks:
            aim = (centre_of_mass(state) + self.offset - state[AGENT]) / self.max_step
            aim = aim / max(1.0, float(np.linalg.norm(aim)))
        return np.clip(self.speed * aim + self.noise, -1, 1)
