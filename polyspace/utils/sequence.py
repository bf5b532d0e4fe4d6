"""Sequences in parts, one for each rank of a context group, and back."""

import torch
import torch.distributed as dist
from torch import Tensor

from polyspace.utils.distrib import all_gather_cat
from polyspace.utils.ring_attention import LAYOUTS


def chunk_order(ranks: int, layout: str = "contiguous") -> list[int]:
    """Numbers of the chunks that ranks 0, 1, … hold, in a row: one each, or two with "zigzag" (r and 2n − 1 − r)."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if layout == "contiguous" or ranks == 1:
        return list(range(ranks))
    return [chunk for r in range(ranks) for chunk in (r, 2 * ranks - 1 - r)]


def shard_sequence(
    x: Tensor,
    group: dist.ProcessGroup | None,
    *,
    dim: int = 1,
    layout: str = "contiguous",
    value: float | bool = 0,
) -> Tensor:
    """This rank's part of x along `dim`, padded at the end with `value` until ranks (or their two chunks) get the same.

    Shard the padding mask too, with value=True (a mask of nothing but False where there was none), unless the length
    divides. The gradient of x is 0 outside the own part. A group of None or of one gets all of x.
    """
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    order = chunk_order(ranks, layout)
    short = -x.shape[dim] % len(order)
    if short:
        shape = list(x.shape)
        shape[dim] = short
        x = torch.cat([x, x.new_full(shape, value)], dim)
    chunks, held = x.chunk(len(order), dim), len(order) // ranks
    return torch.cat([chunks[i] for i in order[rank * held : (rank + 1) * held]], dim)


def unshard_sequence(
    x: Tensor, group: dist.ProcessGroup | None, length: int, *, dim: int = 1, layout: str = "contiguous"
) -> Tensor:
    """The whole sequence of `length` on every rank, from all ranks' parts. Its gradient is summed over ranks, as every
    rank's loss may read all of it."""
    if group is None or dist.get_world_size(group) == 1:
        return x.narrow(dim, 0, length)
    order = chunk_order(dist.get_world_size(group), layout)
    chunks = all_gather_cat(x.movedim(dim, 0), group, equal=True).chunk(len(order))
    whole = torch.cat([chunks[order.index(i)] for i in range(len(order))])
    return whole[:length].movedim(0, dim)
