"""Runs of neighbouring columns that look alike join into one region: connected parts of a graph of touching runs."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LAST = 2.0  # taken off the likeness of edges that join only for a budget


@dataclass(frozen=True)
class Edges:
    """Which runs touch: a, b (B,E) run numbers, alike (B,E) in −1 … 1, and `LAST` lower for those that never join of
    themselves; −inf where there is no edge."""

    a: Int[Tensor, "B E"]
    b: Int[Tensor, "B E"]
    alike: Float[Tensor, "B E"]


def side_edges(
    first: Int[Tensor, "B P"],
    second: Int[Tensor, "B P"],
    alike: Float[Tensor, "B P"],
    there: Bool[Tensor, "B P"],
    sizes: Int[Tensor, "B M"],
    overlap: float | None,
) -> Edges:
    """One edge a pair of runs, from pairs of cells beside each other: their mean likeness. Runs that share fewer than
    `overlap` of their steps (intersection over union; None: all) are not one thing at one time: `LAST`."""
    runs = sizes.shape[1]
    key, order = torch.where(there, first * runs + second, runs * runs).sort(dim=1, stable=True)
    fresh = torch.ones_like(key, dtype=torch.bool)
    fresh[:, 1:] = key[:, 1:] != key[:, :-1]
    segment = fresh.long().cumsum(1) - 1
    real = (key < runs * runs).to(alike.dtype)
    shared = torch.zeros_like(alike).scatter_add(1, segment, real)
    total = torch.zeros_like(alike).scatter_add(1, segment, alike.gather(1, order) * real)
    pair = torch.zeros_like(key).scatter(1, segment, torch.where(real > 0, key, 0))
    a, b = pair // runs, pair % runs
    union = sizes.gather(1, a) + sizes.gather(1, b) - shared
    mean = total / shared.clamp_min(1)
    score = mean - LAST if overlap is None else torch.where(shared >= overlap * union, mean, mean - LAST)
    return Edges(a, b, torch.where(shared > 0, score, float("-inf")))


def join(
    edges: Edges, counts: Int[Tensor, " B"], runs: int, threshold: float | Tensor, least: int | None, most: int | None
) -> Int[Tensor, "B M"]:
    """Runs -> region (the lowest run number in it): joined along all edges more alike than `threshold`.

    Where that leaves fewer than `least` or more than `most` regions, fewer or more edges are taken, most alike first,
    until there are as many: single-linkage clustering, cut where the budget says. More than `most` can be left only
    where no edges are (parts that hidden cells separate).
    """
    alike, order = edges.alike.sort(dim=1, descending=True, stable=True)
    a, b = edges.a.gather(1, order), edges.b.gather(1, order)
    rank = torch.arange(a.shape[1], device=a.device).expand_as(a)
    limit = torch.as_tensor(threshold, device=a.device, dtype=alike.dtype).detach().clamp_min(-1)
    taken = (alike > limit).sum(1)
    labels = components(a, b, rank < taken[:, None], runs)

    def left(labels: Tensor) -> Tensor:
        whole = labels == torch.arange(runs, device=labels.device)
        return whole.sum(1) - (runs - counts)  # padding runs are regions of their own

    natural = left(labels)
    goal = natural.clamp(min=least, max=most) if least is not None or most is not None else natural
    if bool((goal == natural).all()):
        return labels
    low, high = torch.zeros_like(taken), (alike > float("-inf")).sum(1)  # fewest edges that leave at most `goal`
    while bool((low < high).any()):
        middle = (low + high) // 2
        enough = left(components(a, b, rank < middle[:, None], runs)) <= goal
        low, high = torch.where(enough, low, (middle + 1).minimum(high)), torch.where(enough, middle, high)
    taken = torch.where(goal == natural, taken, high)
    return components(a, b, rank < taken[:, None], runs)


def components(a: Int[Tensor, "B E"], b: Int[Tensor, "B E"], on: Bool[Tensor, "B E"], nodes: int) -> Int[Tensor, "B M"]:
    """The lowest node number of each node's connected part, by hooking and pointer jumping."""
    label = torch.arange(nodes, device=a.device).expand(len(a), -1).contiguous()
    a, b = torch.where(on, a, 0), torch.where(on, b, 0)
    while True:
        at_a, at_b = label.gather(1, a), label.gather(1, b)
        low = torch.minimum(at_a, at_b)
        new = label.scatter_reduce(1, at_a, low, "amin").scatter_reduce(1, at_b, low, "amin")
        new = new.gather(1, new)
        if torch.equal(new, label):
            return label
        label = new
