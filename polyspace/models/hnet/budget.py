"""Runs merge down to a budget with the least loss: agglomeration of touching runs by a tempered form of Ward's cost.

Taking the most alike edges first (single linkage) chains: at 196 chunks of a real clip most cells end in one chunk, and
its mean says nothing. Ward's cost n_a·n_b/(n_a + n_b)·|μ_a − μ_b|², the squared error that a merge adds, keeps chunks
even. With the square root of its first factor large uniform ground may still become one chunk (docs/log.md).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyspace.models.hnet.regions import components

INFINITE = float("inf")


@dataclass
class _Parts:
    """What the runs of a batch have been merged to so far: sums and numbers of their cells' codes, the cost of the
    dearest merge inside each, and how many are left in each clip. A part has the number of its lowest run."""

    total: Float[Tensor, "B M D"]
    size: Float[Tensor, "B M"]
    height: Float[Tensor, "B M"]
    left: Int[Tensor, " B"]

    def cost(self, a: Int[Tensor, "B E"], b: Int[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        mean = self.total / self.size.clamp_min(1)[..., None]
        wide = a.shape + mean.shape[-1:]
        apart = mean.gather(1, a[..., None].expand(wide)) - mean.gather(1, b[..., None].expand(wide))
        n, m = self.size.gather(1, a), self.size.gather(1, b)
        return (n * m / (n + m).clamp_min(1)).sqrt() * apart.square().sum(-1)

    def merge(
        self,
        kept: Int[Tensor, "B K"],
        gone: Int[Tensor, "B K"],
        real: Bool[Tensor, "B K"],
        height: Float[Tensor, "B K"],
    ) -> Int[Tensor, "B M"]:
        """Parts `gone` go into `kept` where `real`; returns the new number of every old part."""
        b, parts, width = self.total.shape
        moved = self.total.gather(1, gone[..., None].expand(-1, -1, width)) * real[..., None]
        self.total = self.total.scatter_add(1, kept[..., None].expand(-1, -1, width), moved)
        self.size = self.size.scatter_add(1, kept, self.size.gather(1, gone) * real)
        self.height = _put(self.height, kept, height, real)
        self.left = self.left - real.sum(1)
        return _put(torch.arange(parts, device=gone.device).expand(b, -1), gone, kept, real)


def _put(x: Tensor, index: Int[Tensor, "B K"], value: Tensor, real: Bool[Tensor, "B K"]) -> Tensor:
    """x with `value` at `index` where `real`; the rest goes to a spare column."""
    spare = torch.cat([x, x[:, :1]], 1)
    return spare.scatter(1, torch.where(real, index, x.shape[1]), value)[:, :-1]


@torch.no_grad()
def merge_to(
    goal: Int[Tensor, " B"],
    counts: Int[Tensor, " B"],
    total: Float[Tensor, "B M D"],
    size: Float[Tensor, "B M"],
    edges: tuple[Int[Tensor, "B E"], Int[Tensor, "B E"], Bool[Tensor, "B E"]],
) -> Int[Tensor, "B M"]:
    """Runs -> part (the lowest run number in it), `goal` parts a clip, or as few as its edges (a, b, is there) allow.

    All pairs that are each other's cheapest neighbour merge at once, round by round, until no merge that is still to
    come could be among the cheapest counts − goal: as for any reducible linkage that is the tree that merging the
    cheapest pair of all would give (F. Murtagh, Computer Journal 26, 1983), cut at `goal`. The result of a clip does
    not depend on the others: one that is done stays as it is.
    """
    a, b, live = edges
    parts = _Parts(total, size, torch.zeros_like(size), counts)
    merges, surplus = [], (counts - goal).clamp_min(0)
    live = live & (surplus > 0)[:, None]
    while bool(live.any()):
        most = int(live.sum(1).max())  # edges inside a part are of no more use
        order = live.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        a, b, live = (x.gather(1, order) for x in (a, b, live))
        dearest = torch.finfo(parts.size.dtype).max  # of what is no number too: else nothing merges, for ever
        cost = torch.where(live, parts.cost(a, b).nan_to_num(dearest, dearest), INFINITE)
        chosen = live & _mutual(a, b, cost, parts.size.shape[1])
        number = int(chosen.sum(1).max())
        pick = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]
        kept, gone = torch.minimum(a, b).gather(1, pick), torch.maximum(a, b).gather(1, pick)
        height = torch.stack([cost, parts.height.gather(1, a), parts.height.gather(1, b)]).amax(0).gather(1, pick)
        real = chosen.gather(1, pick)
        merges.append((kept, gone, torch.where(real, height, INFINITE)))
        renamed = parts.merge(kept, gone, real, height)
        a, b = renamed.gather(1, a), renamed.gather(1, b)
        limit = _nth_lowest(torch.cat([m[2] for m in merges], 1), surplus)
        done = (parts.left <= goal) & (cost.amin(1) > limit)
        live = live & (a != b) & ~done[:, None]
    if not merges:
        return torch.arange(size.shape[1], device=size.device).expand(len(size), -1)
    kept, gone, heights = (torch.cat(x, 1) for x in zip(*merges, strict=True))
    rank = heights.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return components(kept, gone, (rank < surplus[:, None]) & (heights < INFINITE), size.shape[1])


def _mutual(
    a: Int[Tensor, "B E"], b: Int[Tensor, "B E"], cost: Float[Tensor, "B E"], parts: int
) -> Bool[Tensor, "B E"]:
    """Edges that are the cheapest of both their ends; of equal ones the first."""
    shape = (len(a), parts)
    lowest = cost.new_full(shape, INFINITE).scatter_reduce(1, a, cost, "amin").scatter_reduce(1, b, cost, "amin")
    edge, none = torch.arange(a.shape[1], device=a.device).expand_as(a), a.shape[1]
    first = torch.full(shape, none, device=a.device)
    for end in (a, b):
        first = first.scatter_reduce(1, end, torch.where(cost <= lowest.gather(1, end), edge, none), "amin")
    return (first.gather(1, a) == edge) & (first.gather(1, b) == edge)


def _nth_lowest(x: Float[Tensor, "B K"], n: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The n-th lowest of each row, inf where a row has fewer; −inf for n = 0."""
    ranked = torch.cat([x.new_full((len(x), 1), -INFINITE), x.sort(dim=1).values], 1)
    found = ranked.gather(1, n.clamp_max(x.shape[1])[:, None]).squeeze(1)
    return torch.where(n > x.shape[1], INFINITE, found)
