"""Ranks and sums across them. Every helper does nothing on one process and keeps its input's dtype.

Collectives with a gradient are written as autograd functions here: the deprecated
`torch.distributed.nn.functional.all_gather` returns wrong gradients on gloo for non-contiguous input. Those that losses
use for the statistics of a batch go over all ranks, unless `statistics_over` names a group of them or none.
"""

import datetime
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polyspace.utils.ring_attention import zigzag_ring_attention as zigzag_ring_attention


def is_distributed() -> bool:
    """True once a process group of more than nothing is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank; the launcher's RANK before a group is up, 0 without a launcher."""
    return dist.get_rank() if is_distributed() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def initialize(timeout_s: float = 1800.0) -> None:
    """Join the group that torchrun announces (nccl where there is a GPU, else gloo); nothing without a launcher."""
    if is_distributed() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))


def shutdown() -> None:
    if is_distributed():
        dist.destroy_process_group()


def barrier() -> None:
    if is_distributed():
        dist.barrier()


_SCOPE: ContextVar[dist.ProcessGroup | Literal["all", "none"]] = ContextVar("statistics", default="all")


@contextmanager
def statistics_over(group: dist.ProcessGroup | Literal["all", "none"]) -> Iterator[None]:
    """Within, statistics of a batch (`all_reduce_sum`, and `all_gather_cat` without a group of its own) are those of
    these ranks: the ones that hold other clips. "none" where ranks do different work, as in an evaluation."""
    token = _SCOPE.set(group)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def _group_of_statistics() -> tuple[bool, dist.ProcessGroup | None]:
    """Whether there is anything to do, and the group to do it in (None: all ranks)."""
    scope = _SCOPE.get()
    if not is_distributed() or scope == "none":
        return False, None
    return True, None if scope == "all" else scope


class _SumAcrossRanks(torch.autograd.Function):
    """y = Σ_r x_r on every rank; since every rank's loss reads y, dL/dx_r = Σ_r dL_r/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        y = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(y, group=group)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def all_reduce_sum(x: Tensor) -> Tensor:
    """Σ over ranks, same shape and dtype as `x`, differentiable."""
    several, group = _group_of_statistics()
    return _SumAcrossRanks.apply(x, group) if several else x


class _ConcatAcrossRanks(torch.autograd.Function):
    """Rows of all ranks in rank order (equal row counts); the gradient is summed over ranks, then cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group)
        ctx.rows, ctx.group = x.shape[0], group
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.rows
        return grad[start : start + ctx.rows], None


def all_gather_cat(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(n, …) on each rank -> (world·n, …) in rank order, same dtype, differentiable; of all ranks, or a group's. Ranks
    must agree on n."""
    if group is not None:
        return _ConcatAcrossRanks.apply(x, group)
    several, group = _group_of_statistics()
    return _ConcatAcrossRanks.apply(x, group) if several else x


def gather_objects(item: Any) -> list[Any]:
    """One small picklable object from each rank, in rank order, on every rank."""
    if not is_distributed():
        return [item]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, item)
    return out


def checkpoint_sequential(
    functions: Iterable[Callable[..., Tensor]], x: Tensor, *where: Any, segments: int | None = None
) -> Tensor:
    """x = f(x, *where) for each function in turn, with activations computed again in the backward pass (once).

    `segments` is the number of runs of functions of which only the input is kept, by default one a function. Values and
    gradients are those of a plain loop, random draws included; without gradients it is one. Functions may hold
    collectives, if every rank calls the same. Source: Chen et al., arXiv 1604.06174; torch.utils.checkpoint.
    """
    functions = list(functions)
    segments = len(functions) if segments is None else segments
    if functions and not 1 <= segments <= len(functions):
        raise ValueError(f"segments must be 1 to {len(functions)}, the number of functions, not {segments}")
    bounds = [i * len(functions) // segments for i in range(segments + 1)] if functions else []
    for start, end in itertools.pairwise(bounds):
        part = functions[start:end]

        def run(x: Tensor, part: list[Callable[..., Tensor]] = part) -> Tensor:
            for function in part:
                x = function(x, *where)
            return x

        x = checkpoint(run, x, use_reentrant=False) if torch.is_grad_enabled() else run(x)
    return x
