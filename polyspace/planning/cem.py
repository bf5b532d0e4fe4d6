"""Cross-entropy method: action sequences of low cost, for any callable that prices them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Cost = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PlanRecord:
    """How the last plan went: `costs` (iterations, B) is the lowest cost seen until then; wall-clock seconds."""

    costs: Float[Tensor, "I B"]
    seconds: float
    seconds_in_cost: float


@dataclass
class _Search:
    """The Gaussian over sequences (B,S,A), and the best sequence so far with its cost (B)."""

    mean: Tensor
    std: Tensor
    best: Tensor
    best_cost: Tensor


class CEMPlanner:
    """Minimise a cost over sequences of `horizon` actions of `action_dim` numbers within [low, high].

    Each iteration draws `samples` sequences from a Gaussian, clamps them to the bounds, and moves mean and standard
    deviation to those of the `elites` of lowest cost: new = momentum · old + (1 − momentum) · elites'. Sequences are
    clamped, not drawn again, so that a bound itself can be reached. `std` is the standard deviation at the start in
    halves of the range: 1 reaches from the middle to a bound. With `keep_best` the first sequence of each iteration is
    the best one so far, and in the first iteration the start itself, so no plan is worse than its start. `answer` is
    what plan() gives back: the best sequence seen, or the last mean. Where costs are exact the best serves better (far
    pushes of Push-T on the true simulator: 12.0 steps beside 13.2); a noisy cost is a reason to take the mean.

    After a plan, `last` holds its PlanRecord. Source: Rubinstein 1999; momentum and clamping as in V-JEPA 2-AC
    (Assran et al. 2025).
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        *,
        samples: int = 64,
        iterations: int = 5,
        elites: int = 8,
        low: float | Sequence[float] = -1.0,
        high: float | Sequence[float] = 1.0,
        std: float | Sequence[float] = 0.5,
        momentum: float = 0.1,
        keep_best: bool = True,
        answer: Literal["best", "mean"] = "best",
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in {"horizon": horizon, "action_dim": action_dim, "iterations": iterations}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 1 <= elites <= samples:
            raise ValueError(f"elites must lie in 1..samples ({samples}), not {elites}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {momentum}")
        if answer not in ("best", "mean"):
            raise ValueError(f"answer must be 'best' or 'mean', not {answer!r}")
        self.horizon, self.action_dim = horizon, action_dim
        self.samples, self.iterations, self.elites = samples, iterations, elites
        self.momentum, self.keep_best, self.answer = momentum, keep_best, answer
        self.device = torch.device(device)
        self.low, self.high = self._per_dim("low", low), self._per_dim("high", high)
        if not (self.low < self.high).all():
            raise ValueError(f"low must lie below high, not {self.low.tolist()} and {self.high.tolist()}")
        self.std = self._per_dim("std", std) * (self.high - self.low) / 2
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, not {std}")
        self.last: PlanRecord | None = None

    def _per_dim(self, name: str, value: float | Sequence[float]) -> Float[Tensor, " A"]:
        """A number for each action dimension."""
        given = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        if given.shape not in ((), (self.action_dim,)) or not given.isfinite().all():
            raise ValueError(f"{name} must be one finite number or {self.action_dim}, not {value}")
        return given.expand(self.action_dim)

    def plan(
        self,
        cost: Cost,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        init: Float[Tensor, "B S A"] | None = None,
    ) -> Float[Tensor, "B S A"]:
        """Sequences of low cost for `batch_size` independent problems.

        `cost` takes actions (B,K,S,A) and gives (B,K); lower is better, and what is not finite ranks last. The search
        starts at `init` (say, the last plan shifted by the step taken), or at the middle of the bounds. All problems
        of a batch share their noise, so that each is solved as if it were alone. Without a generator the noise is that
        of seed 0. ValueError for a cost of another shape, or without a finite value for some problem.
        """
        began, in_cost, seen = time.perf_counter(), 0.0, []
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        search = self._start(batch_size, init)
        for _ in range(self.iterations):
            actions = self._draw(search, generator)
            asked = time.perf_counter()
            costs = self._ask(cost, actions)
            in_cost += time.perf_counter() - asked
            self._learn(search, actions, costs)
            seen.append(search.best_cost.clone())
        self.last = PlanRecord(torch.stack(seen).cpu(), time.perf_counter() - began, in_cost)
        return search.best if self.answer == "best" else search.mean

    def _start(self, batch_size: int, init: Tensor | None) -> _Search:
        shape = (batch_size, self.horizon, self.action_dim)
        if init is None:
            init = ((self.low + self.high) / 2).expand(shape)
        if init.shape != shape:
            raise ValueError(f"init must be (B,S,A) = {shape}, not {tuple(init.shape)}")
        mean = init.detach().to(self.device, torch.float32).clamp(self.low, self.high)
        worst = torch.full((batch_size,), torch.inf, device=self.device)
        return _Search(mean, self.std.expand(shape), mean.clone(), worst)

    def _draw(self, search: _Search, generator: torch.Generator) -> Float[Tensor, "B K S A"]:
        shape = (self.samples, self.horizon, self.action_dim)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        actions = (search.mean[:, None] + search.std[:, None] * noise).clamp(self.low, self.high)
        if self.keep_best:
            actions[:, 0] = search.best
        return actions

    def _ask(self, cost: Cost, actions: Float[Tensor, "B K S A"]) -> Float[Tensor, "B K"]:
        with torch.no_grad():
            costs = cost(actions)
        if costs.shape != actions.shape[:2]:
            raise ValueError(f"cost must give (B,K) = {tuple(actions.shape[:2])}, not {tuple(costs.shape)}")
        costs = costs.to(self.device, torch.float32)
        costs = torch.where(costs.isfinite(), costs, torch.inf)
        hopeless = costs.isinf().all(1)
        if hopeless.any():
            raise ValueError(f"no sequence has a finite cost for problem {int(hopeless.nonzero()[0])}")
        return costs

    def _learn(self, search: _Search, actions: Float[Tensor, "B K S A"], costs: Float[Tensor, "B K"]) -> None:
        lowest, index = costs.topk(self.elites, dim=1, largest=False)
        elites = actions.gather(1, index[..., None, None].expand(-1, -1, *actions.shape[2:]))  # (B,E,S,A)
        weight = lowest.isfinite().float()
        weight = (weight / weight.sum(1, keepdim=True))[..., None, None]
        mean = (weight * elites).sum(1)
        std = (weight * (elites - mean[:, None]) ** 2).sum(1).sqrt()
        search.mean = self.momentum * search.mean + (1 - self.momentum) * mean
        search.std = self.momentum * search.std + (1 - self.momentum) * std
        better = lowest[:, 0] < search.best_cost
        search.best = torch.where(better[:, None, None], elites[:, 0], search.best)
        search.best_cost = torch.where(better, lowest[:, 0], search.best_cost)
