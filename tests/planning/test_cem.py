"""The planner against functions with published minima, and its promises."""

import math

import pytest
import torch

from polyspace.planning.cem import CEMPlanner
from polyspace.utils.misc import CEMPlanner as HandedOn


def sphere(x):
    return (x**2).sum(-1)


def rosenbrock(x):
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def rastrigin(x):
    return (x**2 - 10 * torch.cos(2 * math.pi * x) + 10).sum(-1)


def ackley(x):
    return -20 * torch.exp(-0.2 * (x**2).mean(-1).sqrt()) - torch.exp(torch.cos(2 * math.pi * x).mean(-1)) + 20 + math.e


def branin(x):
    a, b = x[..., 0], x[..., 1]
    return (
        (b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6) ** 2
        + 10 * (1 - 1 / (8 * math.pi)) * torch.cos(a)
        + 10
    )


def camel(x):
    a, b = x[..., 0], x[..., 1]
    return (4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + (4 * b**2 - 4) * b**2


# function, size, low, high, where the minima lie, the minimum, tolerances of cost and place; Molga & Smutnicki 2005.
# Rosenbrock's valley lies across the axes, and a Gaussian without correlations narrows before it is through.
PUBLISHED = {
    "sphere": (sphere, 4, -5.12, 5.12, [(0, 0, 0, 0)], 0.0, 1e-5, 0.01),
    "rosenbrock": (rosenbrock, 2, -2.048, 2.048, [(1, 1)], 0.0, 2e-2, 0.25),
    "rastrigin": (rastrigin, 2, -5.12, 5.12, [(0, 0)], 0.0, 1e-3, 0.01),
    "ackley": (ackley, 3, -32.768, 32.768, [(0, 0, 0)], 0.0, 1e-2, 0.01),
    "branin": (
        branin,
        2,
        (-5.0, 0.0),
        (10.0, 15.0),
        [(-math.pi, 12.275), (math.pi, 2.275), (9.42478, 2.475)],
        0.397887,
        1e-4,
        0.02,
    ),
    "camel": (camel, 2, (-3.0, -2.0), (3.0, 2.0), [(0.0898, -0.7126), (-0.0898, 0.7126)], -1.0316, 1e-3, 0.02),
}


def on_one_step(function):
    return lambda actions: function(actions[:, :, 0])


@pytest.mark.parametrize("answer", ["best", "mean"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_minima_are_found(name, answer):
    function, size, low, high, where, least, tolerance, near = PUBLISHED[name]
    planner = CEMPlanner(
        1, size, samples=500, iterations=40, elites=50, low=low, high=high, std=1.0, momentum=0.3, answer=answer
    )
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(size, generator=generator)
        init = (planner.low + start * (planner.high - planner.low)).view(1, 1, size)  # the middle is often the minimum
        found = planner.plan(on_one_step(function), generator=generator, init=init)[0, 0]
        assert function(found).item() == pytest.approx(least, abs=tolerance)
        assert min(torch.dist(found, torch.tensor(w).float()).item() for w in where) < near


def test_each_minimum_of_branin_is_found_from_a_start_beside_it():
    function, size, low, high, where, least, tolerance, _ = PUBLISHED["branin"]
    planner = CEMPlanner(1, size, samples=200, iterations=20, elites=10, low=low, high=high, std=0.1)
    init = torch.tensor(where).float()[:, None] + 0.3
    found = planner.plan(on_one_step(function), batch_size=3, init=init)
    assert torch.allclose(found[:, 0], torch.tensor(where).float(), atol=0.02)
    assert planner.last.costs[-1].tolist() == pytest.approx([least] * 3, abs=tolerance)


def test_steps_are_chosen_together():
    """A point pushed for three steps: only the sum of the actions counts, and the least effort shares it out."""
    planner = CEMPlanner(3, 2, samples=300, iterations=30, elites=20)
    target = torch.tensor([1.5, -0.6])
    plan = planner.plan(lambda a: ((a.sum(2) - target) ** 2).sum(-1) + 0.2 * (a**2).sum((-1, -2)))
    shared = target / (3 + 0.2)  # where the gradient of the cost is zero
    assert torch.allclose(plan[0], shared.expand(3, 2), atol=0.05)


def test_an_optimum_outside_the_bounds_ends_at_the_bound():
    planner = CEMPlanner(2, 3, low=(-1.0, -2.0, 0.0), high=(1.0, 2.0, 0.5), samples=200, iterations=20, elites=20)
    plan = planner.plan(lambda a: ((a - torch.tensor([9.0, -9.0, 0.25])) ** 2).sum((-1, -2)))
    assert torch.equal(plan[0, :, 0], torch.ones(2)) and torch.equal(plan[0, :, 1], -2 * torch.ones(2))
    assert torch.allclose(plan[0, :, 2], torch.full((2,), 0.25), atol=0.03)


def test_every_candidate_lies_within_the_bounds():
    seen = []

    def cost(actions):
        seen.append(actions)
        return sphere(actions).sum(-1)

    planner = CEMPlanner(2, 2, low=(-1.0, 3.0), high=(0.0, 4.0), std=5.0)
    planner.plan(cost, batch_size=2, init=torch.full((2, 2, 2), 99.0))
    every = torch.cat(seen)
    assert every[..., 0].min() == -1 and every[..., 0].max() == 0
    assert every[..., 1].min() == 3 and every[..., 1].max() == 4


def test_the_seed_decides_the_plan():
    planner = CEMPlanner(4, 2)
    cost = lambda a: sphere(a - 0.3).sum(-1)  # noqa: E731
    first, again, other = (planner.plan(cost, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(planner.plan(cost), planner.plan(cost, generator=torch.Generator().manual_seed(0)))


def test_a_problem_in_a_batch_is_solved_as_if_alone():
    targets = torch.randn(3, 5, 2) * 0.4
    init = torch.randn(3, 5, 2) * 0.1
    planner = CEMPlanner(5, 2)
    together = planner.plan(lambda a: ((a - targets[:, None]) ** 2).sum((-1, -2)), 3, init=init)
    for row in range(3):
        alone = planner.plan(lambda a, row=row: ((a - targets[row]) ** 2).sum((-1, -2)), init=init[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_costs_that_are_not_finite_rank_last():
    def cost(actions):
        x = actions[:, :, 0, 0]
        return torch.where(x > 0.1, torch.nan, torch.where(x < -0.9, -torch.inf, -x))

    planner = CEMPlanner(1, 1, samples=100, iterations=15)
    found = planner.plan(cost).item()
    assert 0.08 < found <= 0.1 + 1e-6
    assert planner.last.costs.isfinite().all()


def test_fewer_finite_costs_than_elites_are_enough():
    def cost(actions):
        costs = sphere(actions).sum(-1)
        costs[:, 3:] = torch.nan
        return costs

    assert CEMPlanner(2, 2, elites=20, answer="mean").plan(cost).isfinite().all()


def test_no_finite_cost_is_an_error_that_names_the_problem():
    def cost(actions):
        costs = sphere(actions).sum(-1)
        costs[1] = torch.nan
        return costs

    with pytest.raises(ValueError, match="problem 1"):
        CEMPlanner(2, 2).plan(cost, batch_size=3)


def test_a_warm_start_helps_and_no_plan_is_worse_than_its_start():
    target = torch.linspace(-0.9, 0.9, 12).view(1, 6, 2)
    cost = lambda a: ((a - target[:, None]) ** 2).sum((-1, -2))  # noqa: E731
    planner = CEMPlanner(6, 2, iterations=2)
    planner.plan(cost)
    cold = planner.last.costs[-1].item()
    planner.plan(cost, init=target + 0.05)
    assert planner.last.costs[-1].item() < cold / 2
    plan = planner.plan(cost, init=target)
    assert torch.equal(plan, target) and planner.last.costs[-1].item() == 0


def test_the_record_tells_costs_and_where_time_went():
    planner = CEMPlanner(2, 2, iterations=7)
    plan = planner.plan(lambda a: sphere(a).sum(-1), batch_size=3)
    costs = planner.last.costs
    assert costs.shape == (7, 3) and (costs[1:] <= costs[:-1]).all()
    assert torch.allclose(costs[-1], sphere(plan).sum(-1))
    assert 0 < planner.last.seconds_in_cost < planner.last.seconds


@pytest.mark.parametrize(
    ("word", "bad"),
    [
        ("horizon", {"horizon": 0}),
        ("iterations", {"iterations": 0}),
        ("elites", {"elites": 65}),
        ("momentum", {"momentum": 1.0}),
        ("low", {"low": 1.0}),
        ("high", {"high": (1.0, 1.0, 1.0)}),
        ("low", {"low": -math.inf}),
        ("std", {"std": 0.0}),
    ],
)
def test_bad_arguments_are_named(word, bad):
    with pytest.raises(ValueError, match=word):
        CEMPlanner(**({"horizon": 2, "action_dim": 2} | bad))


def test_a_cost_or_a_start_of_another_shape_is_an_error():
    planner = CEMPlanner(2, 3)
    with pytest.raises(ValueError, match=r"cost must give \(B,K\) = \(2, 64\)"):
        planner.plan(lambda a: a.sum(-1), batch_size=2)
    with pytest.raises(ValueError, match="init"):
        planner.plan(lambda a: a.sum((-1, -2)), batch_size=2, init=torch.zeros(1, 2, 3))


def test_misc_hands_the_planner_on():
    assert HandedOn is CEMPlanner
