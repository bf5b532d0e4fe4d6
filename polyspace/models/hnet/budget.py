"""Runs merge down to a budget with the least loss: agglomeration of touching runs by a tempered form of Ward's cost.

Taking the most alike edges first (single linkage) chains: at 196 chunks of a real clip most cells end in one chunk, and
its mean says nothing. Ward's cost n_a·n_b/(n_a + n_b)·|μ_a − μ_b|², the squared error that a merge adds, keeps chunks
even. With the square root of its first factor large uniform ground may still become one chunk (docs/log.md).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyspace.models.hnet.regions import components

INFINITE = float("inf")


TIDY_EVERY = 8  # rounds between two looks for edges that are of no more use


class _Parts:
    """What the runs of a batch have been merged to so far: sums (B,M,D), means and numbers of their cells' codes, the
    cost of the dearest merge inside each, and how many are left in each clip. A part has the number of its lowest
    run."""

    def __init__(self, total: Float[Tensor, "B M D"], size: Float[Tensor, "B M"], counts: Int[Tensor, " B"]) -> None:
        self.total, self.size, self.left = total.clone(), size, counts
        self.mean = total / size.clamp_min(1)[..., None]
        self.height = torch.zeros_like(size)

    def cost(self, clip: Int[Tensor, " S"], a: Int[Tensor, " S"], b: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Of merging part a with part b of each clip; the highest number for what is no number, else nothing would
        merge, for ever."""
        mean, size, first = self.mean.flatten(0, 1), self.size.flatten(), clip * self.size.shape[1]
        a, b = first + a, first + b
        n, m = size.index_select(0, a), size.index_select(0, b)
        apart = mean.index_select(0, a).sub_(mean.index_select(0, b)).square_().sum(-1)
        dearest = torch.finfo(n.dtype).max
        return ((n * m / (n + m).clamp_min(1)).sqrt() * apart).nan_to_num(dearest, dearest)

    def merge(
        self,
        kept: Int[Tensor, "B K"],
        gone: Int[Tensor, "B K"],
        real: Bool[Tensor, "B K"],
        height: Float[Tensor, "B K"],
    ) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
        """Parts `gone` go into `kept` where `real`; returns the new number of every old part, and which have grown."""
        b, parts, width = self.total.shape
        moved = self.total.gather(1, gone[..., None].expand(-1, -1, width)) * real[..., None]
        self.total.scatter_add_(1, kept[..., None].expand(-1, -1, width), moved)
        self.size = self.size.scatter_add(1, kept, self.size.gather(1, gone) * real)
        self.height = _put(self.height, kept, height, real)
        self.left = self.left - real.sum(1)
        grown = _put(torch.zeros(b, parts, dtype=torch.bool, device=gone.device), kept, real, real)
        clip, part = grown.nonzero(as_tuple=True)
        self.mean[clip, part] = self.total[clip, part] / self.size[clip, part].clamp_min(1)[:, None]
        return _put(torch.arange(parts, device=gone.device).expand(b, -1), gone, kept, real), grown


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
    parts = _Parts(total, size, counts)
    merges, surplus = [], (counts - goal).clamp_min(0)
    live = live & (surplus > 0)[:, None]
    cost, stale = torch.full(a.shape, INFINITE, dtype=size.dtype, device=a.device), live
    while bool(live.any()):
        if len(merges) % TIDY_EVERY == 0:
            live = live & ~_repeated(torch.where(live, torch.minimum(a, b) * size.shape[1] + torch.maximum(a, b), -1))
            order = live.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(live.sum(1).max())]
            a, b, live, cost, stale = (x.gather(1, order) for x in (a, b, live, cost, stale))
            stale = stale & live
        clip, edge = stale.nonzero(as_tuple=True)
        cost = cost.index_put((clip, edge), parts.cost(clip, a[clip, edge], b[clip, edge]))
        chosen = live & _mutual(a, b, cost, parts.size.shape[1])
        number = int(chosen.sum(1).max())
        pick = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]
        kept, gone = torch.minimum(a, b).gather(1, pick), torch.maximum(a, b).gather(1, pick)
        height = torch.stack([cost, parts.height.gather(1, a), parts.height.gather(1, b)]).amax(0).gather(1, pick)
        real = chosen.gather(1, pick)
        merges.append((kept, gone, torch.where(real, height, INFINITE)))
        renamed, grown = parts.merge(kept, gone, real, height)
        a, b = renamed.gather(1, a), renamed.gather(1, b)
        limit = _nth_lowest(torch.cat([m[2] for m in merges], 1), surplus)
        done = (parts.left <= goal) & (cost.amin(1) > limit)
        live = live & (a != b) & ~done[:, None]
        cost = torch.where(live, cost, INFINITE)
        stale = live & (grown.gather(1, a) | grown.gather(1, b))  # one merge changes few costs
    if not merges:
        return torch.arange(size.shape[1], device=size.device).expand(len(size), -1)
    kept, gone, heights = (torch.cat(x, 1) for x in zip(*merges, strict=True))
    rank = heights.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return components(kept, gone, (rank < surplus[:, None]) & (heights < INFINITE), size.shape[1])


def _repeated(key: Int[Tensor, "B E"]) -> Bool[Tensor, "B E"]:
    """Where a number stands that stood in its row before."""
    ranked, order = key.sort(dim=1, stable=True)
    again = torch.cat([torch.zeros_like(ranked[:, :1], dtype=torch.bool), ranked[:, 1:] == ranked[:, :-1]], 1)
    return torch.zeros_like(again).scatter(1, order, again)


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
