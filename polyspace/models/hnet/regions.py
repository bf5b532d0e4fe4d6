"""Which runs of neighbouring columns touch, and regions: those that look alike, joined to connected parts."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyspace.models.hnet.encoder import Cells, RowFinder
from polyspace.models.hnet.gate import Likeness

APART = -2.0  # likeness of runs that touch but are no candidates for one region: lower than any cosine


@dataclass(frozen=True)
class Edges:
    """Which runs touch: a, b (B,E) run numbers, there (B,E) whether that is an edge, alike (B,E) a
    cosine or `APART`."""

    a: Int[Tensor, "B E"]
    b: Int[Tensor, "B E"]
    there: Bool[Tensor, "B E"]
    alike: Float[Tensor, "B E"]


def touching(
    cells: Cells,
    find: RowFinder,
    likeness: Likeness,
    run: Int[Tensor, "B V"],
    before: Int[Tensor, "B V"],
    cut: Bool[Tensor, "B V"],
    counts: Int[Tensor, " B"],
    overlap: float,
) -> Edges:
    """Edges between runs side by side, and between a run and the one before it in its column (`APART`)."""
    _, h, w = cells.grid
    sides = [find.back(1, cells.index % w > 0), find.back(w, cells.index // w % h > 0)]
    first = torch.cat([run.gather(1, rows) for rows, _ in sides], 1)
    alike = torch.cat([likeness.to(rows) for rows, _ in sides], 1)
    there = torch.cat([is_there for _, is_there in sides], 1)
    side = side_edges(first, torch.cat([run, run], 1), alike, there, run_sizes(run, cells.valid, counts), overlap)
    along = run.gather(1, before), run, cut, torch.full_like(alike[:, : run.shape[1]], APART)
    return Edges(*(torch.cat(x, 1) for x in zip((side.a, side.b, side.there, side.alike), along, strict=True)))


def run_sizes(run: Int[Tensor, "B V"], valid: Bool[Tensor, "B V"], counts: Int[Tensor, " B"]) -> Int[Tensor, "B M"]:
    """Cells of each run."""
    sizes = torch.zeros(len(run), int(counts.max()), dtype=torch.long, device=run.device)
    return sizes.scatter_add(1, torch.where(valid, run, 0), valid.long())


def side_edges(
    first: Int[Tensor, "B P"],
    second: Int[Tensor, "B P"],
    alike: Float[Tensor, "B P"],
    there: Bool[Tensor, "B P"],
    sizes: Int[Tensor, "B M"],
    overlap: float,
) -> Edges:
    """One edge a pair of runs, from pairs of cells beside each other: their mean likeness. Runs that share fewer than
    `overlap` of their steps (intersection over union) are not one thing at one time: `APART`."""
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
    return Edges(a, b, shared > 0, torch.where(shared >= overlap * union, mean, APART))


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


def renumber(region: Int[Tensor, "B M"], counts: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B M"], Int[Tensor, " B"]]:
    """Regions named by their lowest run -> regions 0, 1, 2 …, and how many there are (padding runs not counted)."""
    runs = torch.arange(region.shape[1], device=region.device)
    first = (region == runs) & (runs < counts[:, None])
    return (first.long().cumsum(1) - 1).clamp_min(0).gather(1, region), first.sum(1)
