"""What tells learning from collapse, measured on the target's latents at the updates that are logged."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from polyspace.losses.energy import Kind, energy_loss
from polyspace.models.vjepa.encoded import Encoded
from polyspace.train.vjepa.questions import Questions
from polyspace.utils.distrib import statistics_over
from polyspace.utils.monitor import effective_rank, position_std, usage_perplexity

LEAST_CLIPS = 8  # spread and skill say nothing about fewer
ENOUGH_CLIPS = 32  # a constant fitted to few clips flatters itself: skill reads .1 too low with 8, .025 with 32


@dataclass(frozen=True)
class Seen:
    """A batch as the target saw it: latents on the grid (B,N,D), the goals made of them (None where whole chunks are
    asked for) and mean tokens (B,D), what was asked, the energy."""

    grid: Tensor
    goals: Tensor | None
    pooled: Tensor
    asked: Questions
    loss: Tensor


class Watch:
    """Monitors (utils/monitor.py) every `every` updates. Batches (or micro-batches) of fewer than `ENOUGH_CLIPS` clips
    are gathered with those before: since the last time, or further back where that makes fewer than `LEAST_CLIPS`. With
    fewer still, just after a start or a resumption, rank, spread and skill are left out."""

    def __init__(self, every: int, energy: Kind) -> None:
        self.every, self.energy = every, energy
        self.seen: deque[Seen] = deque()

    @torch.no_grad()
    def __call__(
        self, step: int, known: Encoded, goals: Tensor | None, asked: Questions, loss: Tensor
    ) -> dict[str, Tensor]:
        """The monitors of update `step` if it is one to be logged, else nothing. Of several ranks each watches its own
        clips (the loop logs means): how many it could read, and so whether it says anything, is its own affair."""
        with statistics_over("none"):
            return self._watch(step, known, goals, asked, loss)

    def _watch(
        self, step: int, known: Encoded, goals: Tensor | None, asked: Questions, loss: Tensor
    ) -> dict[str, Tensor]:
        batches = min(-(-ENOUGH_CLIPS // len(known.tokens)), max(self.every, -(-LEAST_CLIPS // len(known.tokens))))
        if step % self.every < self.every - batches:
            return {}
        self.seen.append(Seen(known.on_grid(), goals, known.pooled(), asked, loss))
        while len(self.seen) > batches:
            self.seen.popleft()
        if step % self.every != self.every - 1:
            return {}
        out = {"chunks": known.valid.sum(1).float().mean()}
        if sum(len(s.pooled) for s in self.seen) >= LEAST_CLIPS:
            out |= {"effective_rank": effective_rank(torch.cat([s.pooled for s in self.seen]))}
            out |= {"position_std": position_std(torch.cat([s.grid for s in self.seen]))}
            loss = torch.stack([s.loss for s in self.seen]).mean()
            out["skill"] = 1 - loss / self.ignorance().clamp_min(1e-6)
        if known.routing is not None:
            r = known.routing
            if bool(r.judged.any()):
                out["boundary_rate"] = (r.boundary & r.judged).sum() / r.judged.sum()
            out["usage"] = usage_perplexity(known.sizes)
        if batches == 1:
            self.seen.clear()  # nothing to gather: a large grid need not be held until the next time
        return out

    def ignorance(self) -> Tensor:
        """The loss, by the same energy and weights, of one constant per place: the clips' median there (the mean for
        l2), which knows where but nothing of the clip. Where whole chunks are asked for, which have no place in common,
        it is one constant for all of them."""
        places = self.constants() if self.seen[0].asked.index is not None else None
        losses = []
        for s in self.seen:
            goal = s.asked.goal
            constant = self.constant().expand_as(goal) if places is None else places[s.asked.index]
            losses.append(energy_loss(constant, goal, s.asked.hidden_weight, self.energy))
        return torch.stack(losses).mean()

    def constants(self) -> Tensor:
        """(N,D), one for every place of the grid."""
        return self.middle(torch.cat([s.goals for s in self.seen if s.goals is not None]))

    def constant(self) -> Tensor:
        """(D,), one for all chunks that were asked for."""
        asked = torch.cat([s.asked.goal[s.asked.hidden_weight > 0] for s in self.seen])
        return self.middle(asked) if len(asked) else self.seen[0].asked.goal.new_zeros(asked.shape[1:])

    def middle(self, x: Tensor) -> Tensor:
        return x.mean(0) if self.energy == "l2" else x.median(0).values
