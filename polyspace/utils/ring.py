"""Ranks in a ring: who holds which block of a sequence, how blocks and their gradients travel, and who sees what.

Blocks come from both neighbours by turns, so that both directions of a link are in use: from the left those of ranks
r − 1, r − 2, …, from the right those of r + 1, …, half way round each. A block is sent on before it is computed with.
In the backward pass the gradients of a block's keys and values travel along with it, and from its last stop home.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from polyspace.utils.misc import wide

EVERY = slice(None)
SHARED = ["B", "H", "keys", "width", "width of values", "bytes a number", "masked or biased", "learned bias"]
SHARED += ["causal", "zigzag"]


class Transfer:
    """A tensor on its way to the rank so many places on, and another of its shape from as many places back."""

    def __init__(self, sent: Tensor, places: int, group: dist.ProcessGroup) -> None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self._sent: Tensor | None = sent  # both must live until the transfer is over
        self._got = torch.empty_like(sent)
        to, source = (dist.get_global_rank(group, (rank + p) % size) for p in (places, -places))
        self._works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, sent, to, group), dist.P2POp(dist.irecv, self._got, source, group)]
        )

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        self._sent = None  # its memory is wanted
        return self._got


@dataclass(frozen=True)
class Ring:
    """Who holds what, and who sees what."""

    group: dist.ProcessGroup
    causal: bool
    zigzag: bool
    scale: float

    @property
    def reach(self) -> dict[int, int]:
        """How many places blocks travel to the right (+1) and to the left (−1): all others' are seen, once."""
        size = dist.get_world_size(self.group)
        return {+1: size // 2, -1: (size - 1) // 2}

    def holder(self, direction: int, hop: int) -> int:
        """The rank whose block is here after so many hops in that direction."""
        return (dist.get_rank(self.group) - direction * hop) % dist.get_world_size(self.group)

    def blocks(self, k: Tensor, v: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(direction, hop, keys, values) of every rank's block: the own one first, as (0, 0)."""
        packed = torch.cat([k.flatten(), v.flatten()])
        coming = {way: Transfer(packed, way, self.group) for way, far in self.reach.items() if far}
        del packed
        yield 0, 0, k, v
        for hop in range(1, self.reach[+1] + 1):
            for way in (+1, -1):
                if hop > self.reach[way]:
                    continue
                here = coming.pop(way).wait()
                if hop < self.reach[way]:
                    coming[way] = Transfer(here, way, self.group)
                yield way, hop, here[: k.numel()].view(k.shape), here[k.numel() :].view(v.shape)
                del here

    def seen(self, holder: int, length: int) -> tuple[slice, slice, bool] | None:
        """Own queries that see keys of that rank's block of `length`, these keys, and if each sees up to its own."""
        rank = dist.get_rank(self.group)
        if not self.causal or holder == rank:
            return EVERY, EVERY, self.causal
        if self.zigzag:  # ours lie around the chunks of later ranks, and between those of earlier ones
            return (EVERY, slice(length // 2), False) if holder < rank else (slice(length // 2, None), EVERY, False)
        return (EVERY, EVERY, False) if holder < rank else None


class Gradients:
    """Gradients of a block's keys, values and, if asked for, bias: views of one flat tensor, which is what travels."""

    def __init__(self, k: Tensor, v: Tensor, of_bias: bool) -> None:
        of_keys = k.shape[0] * k.shape[2] if of_bias else 0
        self.flat = wide(k).new_zeros(k.numel() + v.numel() + of_keys)
        dk, dv, dbias = self.flat.split([k.numel(), v.numel(), of_keys])
        self.dk, self.dv = dk.view(k.shape), dv.view(v.shape)
        self.dbias = dbias.view(k.shape[0], k.shape[2]) if of_bias else None

    def add(self, keys: slice, dk: Tensor, dv: Tensor, dbias: Tensor | None) -> None:
        self.dk[:, :, keys] += dk
        self.dv[:, :, keys] += dv
        if self.dbias is not None and dbias is not None:
            self.dbias[:, keys] += dbias


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(…) on each rank -> (ranks, …), without a gradient."""
    every = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, x.contiguous(), group)
    return torch.stack(every)


def agree(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, of_bias: bool, ring: Ring) -> None:
    """ValueError on every rank if ranks come with different things. A GPU would have to wait for this: not there."""
    if k.device.type != "cpu":
        return
    mine = [*k.shape, v.shape[3], k.element_size(), bias is not None, of_bias, ring.causal, ring.zigzag]
    every = gather(torch.tensor(mine), ring.group)
    differ = (every != every[0]).any(0).nonzero().flatten().tolist()
    if differ:
        found = "; ".join(f"{SHARED[i]}: {every[:, i].tolist()}" for i in differ)
        raise ValueError(f"the ranks of a context group must come with the same shapes and masks ({found})")
