"""The simulator: a state that says all, actions as displacements, images that show it; and the tasks."""

import sys

import numpy as np
import pytest
import torch

from polyspace.planning.cem import CEMPlanner
from polyspace.planning.control import control, random_control
from polyspace.utils.errors import UserError

pytest.importorskip("gym_pusht", reason="needs polyspace[robot]")

from polyspace.planning.collect import collect
from polyspace.planning.pusht import AGENT, AGENT_VELOCITY, ANGLE, BLOCK, PushT, centre_of_mass
from polyspace.planning.tasks import TASKS, block_error, way_to_push


@pytest.fixture(scope="module")
def env():
    return PushT()


def toward_block(state, steps, generator):
    """Actions that head for the block, with noise."""
    aim = (centre_of_mass(state) - state[AGENT]) / 100
    return np.clip(aim + generator.normal(scale=0.5, size=(steps, 2)), -1, 1)


def placed(agent, block=(256.0, 200.0), angle=0.0):
    state = np.zeros(10)
    state[AGENT], state[BLOCK], state[ANGLE] = agent, block, angle
    return state


def test_a_state_comes_back_as_it_was_set(env):
    state = np.random.default_rng(0).normal(size=10)
    state[AGENT], state[BLOCK] = (100.1, 200.2), (300.3, 250.7)
    env.set_state(state)
    assert np.array_equal(env.state(), state)
    state[0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        env.set_state(state)


def test_the_same_state_and_actions_give_the_same_states_bit_for_bit(env):
    generator, touched = np.random.default_rng(0), 0
    for _ in range(12):
        start = env.reset(generator)
        actions = toward_block(start, 30, generator)
        path = np.stack([env.step(action) for action in actions])
        touched += block_error(path[-1], start)[0] > 5
        env.reset(generator)  # whatever was before leaves no trace
        assert np.array_equal(env.simulate(start, actions[None])[0], path)
        assert np.array_equal(PushT().simulate(start, actions[None])[0], path)
        env.set_state(path[9])  # in the midst of a push
        assert np.array_equal([env.step(action) for action in actions[10:]], path[10:])
    assert touched >= 8


def test_simulation_leaves_the_state_alone_and_keeps_candidates_apart(env):
    start = env.reset(np.random.default_rng(1))
    actions = np.random.default_rng(2).uniform(-1, 1, (5, 4, 2)).astype(np.float32)
    states = env.simulate(start, actions)
    assert states.shape == (5, 4, 10) and np.array_equal(env.state(), start)
    assert np.array_equal(env.simulate(start, actions[3:4])[0], states[3])


def test_steps_without_touch_are_those_of_the_physics(env, monkeypatch):
    generator = np.random.default_rng(3)
    starts = [env.reset(generator) for _ in range(40)]
    actions = generator.uniform(-1, 1, (40, 1, 1, 2))
    quick = [env.simulate(s, a) for s, a in zip(starts, actions, strict=True)]
    monkeypatch.setattr(PushT, "_block_rests", lambda *_: False)
    full = [env.simulate(s, a) for s, a in zip(starts, actions, strict=True)]
    assert np.allclose(quick, full, rtol=0, atol=1e-9)


def test_a_push_is_that_of_the_original_environment(env):
    """Beside PushTEnv.step with the same targets; its contact solver remembers, ours starts afresh each step."""
    from gym_pusht.envs.pusht import PushTEnv

    other = PushTEnv()
    other.reset(seed=0, options={"reset_to_state": [256, 400, 256, 200, 0]})
    state = placed(other.agent.position, other.block.position, other.block.angle)
    env.set_state(state)
    for _ in range(12):
        target = env.state()[AGENT] + [0, -0.7 * env.max_step]
        state = env.step(np.array([0, -0.7]))
        seen, *_ = other.step(target)
        assert np.allclose(state[AGENT], seen[:2], atol=1e-6)
        assert np.allclose(state[BLOCK], seen[2:4], atol=0.5)
    assert state[BLOCK][1] < 170  # it was pushed


def test_an_action_is_a_displacement_that_the_controller_approaches(env):
    """From rest the PD controller (k_p 100, k_v 20: critically damped, 10 / s) covers 1 − 2/e of the way in 0.1 s."""
    after = env.simulate(placed((100.0, 450.0)), np.array([[[1.0, 0.0], [1.0, 0.0]], [[2.0, -3.0], [0.0, 0.0]]]))
    moved = after[:, 0, AGENT] - [100, 450]
    assert moved[0] == pytest.approx([(1 - 2 / np.e) * env.max_step, 0], rel=0.15)
    assert moved[1] == pytest.approx([moved[0, 0], -moved[0, 0]])  # clipped to [-1, 1]
    assert after[0, 0, AGENT_VELOCITY][0] > 0
    still = env.simulate(placed((500.0, 450.0)), np.ones((1, 20, 2)))
    assert still[..., AGENT].max() <= 513  # the target stays on the table


def test_the_agent_is_seen_at_64_pixels_and_blue(env):
    for place in ((100.0, 400.0), (403.0, 77.0)):
        env.set_state(placed(place))
        image = env.render()
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        red, blue = image[..., 0].astype(int), image[..., 2].astype(int)
        rows, columns = np.nonzero(blue - red > 80)
        assert 5 <= len(rows) <= 25
        assert columns.mean() * 8 + 4 == pytest.approx(place[0], abs=4)
        assert rows.mean() * 8 + 4 == pytest.approx(place[1], abs=4)


def test_the_block_is_drawn_where_its_centre_of_mass_says(env):
    state = placed((40.0, 40.0), (250.0, 260.0), 1.1)
    env.set_state(state)
    image = env.render().astype(int)
    grey = (image[..., 0] < 200) & (image[..., 2] - image[..., 0] < 60)
    grey[:20, :20] = False
    rows, columns = np.nonzero(grey)
    assert [columns.mean() * 8 + 4, rows.mean() * 8 + 4] == pytest.approx(centre_of_mass(state), abs=6)


def test_a_recording_is_its_states_its_actions_and_its_images(env):
    record = collect(env, episodes=3, steps=6, seed=5)
    assert record.video.shape == (3, 7, 64, 64, 3) and record.actions.shape == (3, 6, 2)
    assert (np.abs(record.actions) <= 1).all()
    for states, actions, video in zip(record.states, record.actions, record.video, strict=True):
        assert np.array_equal(env.simulate(states[0], actions[None])[0], states[1:])
        env.set_state(states[4])
        assert np.array_equal(env.render(), video[4])
    again, other = collect(env, 3, 6, 5), collect(env, 3, 6, 6)
    assert np.array_equal(again.video, record.video) and not np.array_equal(other.actions, record.actions)


def test_a_recording_touches_the_block_in_many_episodes_and_is_smooth(env):
    record = collect(env, episodes=12, steps=40, seed=0)
    moved = [block_error(states[-1], states[0])[0] > 5 for states in record.states]
    assert sum(moved) >= 4
    step = np.diff(record.actions, axis=1).std() / record.actions.std()
    assert step < 1.1  # independent draws have √2


@pytest.mark.parametrize("name", TASKS)
def test_a_start_has_not_succeeded_its_goal_has_and_the_seed_decides_both(env, name):
    task = TASKS[name]
    for seed in range(5):
        start, goal = task.draw(env, np.random.default_rng(seed))
        assert not task.success(start, goal) and task.success(goal, goal)
        again = task.draw(env, np.random.default_rng(seed))
        assert np.array_equal(start, again[0]) and np.array_equal(goal, again[1])
        at_goal, at_start = (np.tile(s, (1, 3, 1)) for s in (goal, start))
        assert task.oracle_cost(at_goal, goal)[0] < task.oracle_cost(at_start, goal)[0]


def test_angles_are_compared_around_the_circle():
    goal = placed((0.0, 0.0), angle=3.1)
    off, turned = block_error(placed((0.0, 0.0), angle=-3.1 + 4 * np.pi), goal)
    assert turned == pytest.approx(2 * np.pi - 6.2) and off == pytest.approx(45 * 2 * np.sin(turned / 2))


def test_the_way_to_push_leads_around_the_block():
    goal = placed((0.0, 0.0), block=(356.0, 200.0))  # a hundred units to the right
    centre = centre_of_mass(placed((0.0, 0.0)))
    behind, beside, before = (way_to_push(placed(centre + at), goal) for at in ((-50, 0), (0, 100), (100, 0)))
    assert behind == pytest.approx(0, abs=1e-3)
    assert before == pytest.approx(2 * beside) and beside == pytest.approx(100 * np.pi / 2)


def test_without_the_simulator_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)
    with pytest.raises(UserError, match=r"polyspace\[robot\]"):
        PushT()


def oracle_and_random(env, task, episodes, steps):
    """How many episodes the planner on the true simulator wins, and the random policy."""
    wins = np.zeros(2, int)
    generator, planner = np.random.default_rng(11), CEMPlanner(5, 2, std=1.0)
    for episode in range(episodes):
        start, goal = task.draw(env, generator)

        def make_cost(env, task=task, goal=goal):
            state = env.state()
            return lambda a: torch.from_numpy(task.oracle_cost(env.simulate(state, a[0].numpy()), goal))[None]

        def success(state, task=task, goal=goal):
            return task.success(state, goal)

        env.set_state(start)
        wins[0] += control(env, planner, make_cost, success, steps).success
        env.set_state(start)
        wins[1] += random_control(env, success, steps, generator=torch.Generator().manual_seed(episode)).success
    return wins


def test_an_oracle_reaches_and_chance_does_not(env):
    oracle, chance = oracle_and_random(env, TASKS["reach"], 2, TASKS["reach"].steps)
    assert oracle == 2 and chance <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["push_near", "push_far"])
def test_an_oracle_pushes_and_chance_does_not(env, name):
    oracle, chance = oracle_and_random(env, TASKS[name], 8, TASKS[name].steps)
    assert oracle >= 6 and chance <= 3
