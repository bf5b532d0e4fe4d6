"""Push-T: a disc pushes a T-shaped block over a table: gym-pusht with a state that can be set exactly."""

import math
import os
import sys

import numpy as np
from jaxtyping import Float, Float64, UInt8

from polyspace.utils.errors import UserError

State = Float64[np.ndarray, "10"]

ARENA = 512.0  # side of the square table in world units
AGENT_RADIUS = 15.0
STATE_DIM = 10
MASS_OFFSET = 45.0  # from the block's position to its centre of mass, along the T's stem
BLOCK_REACH = 78.0  # from there to the farthest corner (76.5), and a margin
WALL = 8.0  # the walls' inner faces lie 7 units inside the arena's edge
AGENT, AGENT_VELOCITY, BLOCK, ANGLE, BLOCK_VELOCITY, SPIN = (
    slice(0, 2),
    slice(2, 4),
    slice(4, 6),
    6,
    slice(7, 9),
    9,
)


def centre_of_mass(states: Float64[np.ndarray, "*n 10"]) -> Float64[np.ndarray, "*n 2"]:
    """Where the block's centre of mass is, in world units."""
    angle = states[..., ANGLE]
    return states[..., BLOCK] + MASS_OFFSET * np.stack([-np.sin(angle), np.cos(angle)], -1)


class PushT:
    """Push-T with displacements as actions.

    A state is [agent x, y, its velocity, block x, y, its angle, its velocity, its spin]: world units (0..512, y points
    down), radians, seconds. The block's position is the middle of the T's top edge, not its centre of mass. An action
    in [-1, 1]² is a displacement: the simulator's PD controller heads for the agent's position + action · `max_step`,
    kept within the table, for `substeps` · 0.01 s. The controller is slow: from rest the agent covers about a quarter
    of that way in a step, and half of it in each step of a steady push.

    The simulator's contact solver remembers the impulses of the step before. Each of our steps starts without that
    memory, so that the state says all: the same state and actions give the same states, bit for bit, in step() and
    simulate() alike.

    Needs gym-pusht (UserError names the extra). Source: Florence et al. 2021, Chi et al. 2023.
    """

    action_dim = 2
    state_dim = STATE_DIM

    def __init__(self, size: int = 64, max_step: float = 80.0) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window is ever opened
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import cv2
            import pygame
            import pymunk
            from gym_pusht.envs import pusht
        except ImportError as error:
            raise UserError(f"Push-T needs gym-pusht: pip install 'polyspace[robot]' ({error})") from error
        self.size, self.max_step = size, max_step
        self._shrink = lambda image: cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        bytes_in_order = (0xFF, 0xFF00, 0xFF0000, 0) if sys.byteorder == "little" else (0xFF000000, 0xFF0000, 0xFF00, 0)
        self._surface = pygame.Surface((int(ARENA), int(ARENA)), depth=32, masks=bytes_in_order)
        self._draw_options = pusht.DrawOptions(self._surface)
        world = pusht.PushTEnv()
        world.reset(seed=0)
        self._space, self._agent, self._block = world.space, world.agent, world.block
        self._gains, self._dt = (world.k_p, world.k_v), world.dt
        self._substeps = round(1 / (world.dt * world.control_hz))
        for shape in self._space.shapes:
            shape.collision_type = 1  # the simulator's own type counts contacts in Python, which nobody reads here
        self._moving = [*world._block_shapes, *world.agent.shapes]
        # The collision tree visits shapes by a running number modulo its five bins, and so the order of contacts would
        # depend on how often shapes were added. Adding five each time, two of them for show, makes it the same.
        self._fillers = [pymunk.Circle(self._space.static_body, 1.0, (-1e4, -1e4)) for _ in range(2)]
        self.set_state(self._read())

    def reset(self, generator: np.random.Generator) -> State:
        """A random state at rest, agent and block apart; it is set and returned."""
        while True:
            state = np.zeros(STATE_DIM)
            state[AGENT] = generator.uniform(50, 462, 2)
            state[BLOCK] = generator.uniform(120, 392, 2)
            state[ANGLE] = generator.uniform(-np.pi, np.pi)
            if self.gap(state) > 2 * AGENT_RADIUS:
                self.set_state(state)
                return state

    def gap(self, state: State) -> float:
        """Distance from the agent's rim to the block in world units; negative where they overlap."""
        self._load(state)
        at = (float(state[0]), float(state[1]))
        return min(shape.point_query(at).distance for shape in self._block.shapes) - AGENT_RADIUS

    def state(self) -> State:
        return self._state.copy()

    def set_state(self, state: State) -> None:
        """Put the simulator into a state; ValueError if it isn't finite."""
        if not np.isfinite(state).all():
            raise ValueError(f"a state must be finite, not {state}")
        self._state = state.copy()

    def step(self, action: Float[np.ndarray, "2"]) -> State:
        """Move by one action, clipped to [-1, 1]; the new state."""
        self._state = self._advance(self._state, action)
        return self.state()

    def simulate(self, state: State, actions: Float[np.ndarray, "K S 2"]) -> Float64[np.ndarray, "K S 10"]:
        """The states that K sequences of actions lead to from `state`: physics alone, and our own state stays."""
        states = np.empty((*actions.shape[:2], STATE_DIM))
        for candidate, sequence in enumerate(actions):
            at = state
            for step, action in enumerate(sequence):
                at = states[candidate, step] = self._advance(at, action)
        return states

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The table from above, `size` pixels square, each the mean over its area of a sharp 512² drawing."""
        self._load(self._state)
        self._surface.fill((255, 255, 255))
        self._space.debug_draw(self._draw_options)
        sharp = np.frombuffer(self._surface.get_buffer().raw, np.uint8).reshape(int(ARENA), int(ARENA), 4)
        return np.ascontiguousarray(self._shrink(sharp)[..., :3])

    def _advance(self, state: State, action: Float[np.ndarray, "2"]) -> State:
        path = self._agent_path(state, action)
        if self._block_rests(state, path):
            after = state.copy()
            after[:4] = path[-1]
            return after
        self._load(state)
        for _, _, vx, vy in path:
            self._agent.velocity = vx, vy
            self._space.step(self._dt)
        return self._read()

    def _agent_path(self, state: State, action: Float[np.ndarray, "2"]) -> list[tuple[float, float, float, float]]:
        """Position and velocity after each substep, as PushTEnv.step has them: nothing pushes the agent back."""
        x, y, vx, vy = state[:4].tolist()
        dx, dy = (min(max(float(a), -1.0), 1.0) * self.max_step for a in action)
        goal_x, goal_y = min(max(x + dx, 0.0), ARENA), min(max(y + dy, 0.0), ARENA)
        (stiff, damp), dt, path = self._gains, self._dt, []
        for _ in range(self._substeps):
            vx += (stiff * (goal_x - x) - damp * vx) * dt
            vy += (stiff * (goal_y - y) - damp * vy) * dt
            x += vx * dt
            y += vy * dt
            path.append((x, y, vx, vy))
        return path

    def _block_rests(self, state: State, path: list[tuple[float, float, float, float]]) -> bool:
        """The block lies still, and neither the agent on its path nor a wall can touch it: no need to ask physics."""
        block_x, block_y, angle, *moves = state[4:].tolist()
        x, y = block_x - MASS_OFFSET * math.sin(angle), block_y + MASS_OFFSET * math.cos(angle)
        inside = min(x, y) > BLOCK_REACH + WALL and max(x, y) < ARENA - BLOCK_REACH - WALL
        far = (BLOCK_REACH + AGENT_RADIUS) ** 2
        start = (state[0] - x) ** 2 + (state[1] - y) ** 2
        clear = start > far and all((px - x) ** 2 + (py - y) ** 2 > far for px, py, _, _ in path)
        return bool(inside and clear and moves == [0.0, 0.0, 0.0])

    def _load(self, state: State) -> None:
        """Put the bodies where `state` says, with nothing left of earlier contacts."""
        space, agent, block = self._space, self._agent, self._block
        x, y, vx, vy, block_x, block_y, angle, block_vx, block_vy, spin = state.tolist()
        space.remove(*self._moving)  # drops remembered contacts …
        space.step(self._dt)  # … and what they were still about to correct
        agent.position, agent.velocity = (x, y), (vx, vy)
        block.angle = angle  # before the position: it turns the block about its centre of mass
        block.position = block_x, block_y
        block.velocity, block.angular_velocity = (block_vx, block_vy), spin
        space.add(*self._moving, *self._fillers)
        space.remove(*self._fillers)

    def _read(self) -> State:
        agent, block = self._agent, self._block
        return np.array(
            [
                *agent.position,
                *agent.velocity,
                *block.position,
                block.angle,
                *block.velocity,
                block.angular_velocity,
            ]
        )
