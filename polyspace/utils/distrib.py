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
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polyspace.utils.errors import UserError
from polyspace.utils.ring_attention import zigzag_ring_attention as zigzag_ring_attention

T = TypeVar("T")


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


def initialize(timeout_s: float = 1800.0, cpu: bool = False) -> None:
    """Join the group that a launcher announces (nccl where there is a GPU and `cpu` is not asked for, else gloo);
    nothing without a launcher. UserError where the environment names several ranks and not where they meet."""
    if is_distributed() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        said = f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(lacking)} is not set"
        raise UserError(f"{said}: start several ranks with torchrun, or unset WORLD_SIZE")
    gpu = torch.cuda.is_available() and not cpu
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if gpu else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    store, me, ranks = next(iter(dist.rendezvous("env://", timeout=timeout)))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # of several nodes each counts its own restarts
        # torchrun restarts ranks with the store of those before, where the addresses of dead ones still stand
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=me, world_size=ranks, timeout=timeout)


def shutdown() -> None:
    if is_distributed():
        dist.destroy_process_group()


_LOST = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "gloo", "nccl")


@contextmanager
def lost_ranks(minutes: float) -> Iterator[None]:
    """A UserError where a collective fails because another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        gone = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _LOST)
        if not is_distributed() or isinstance(error, UserError) or not gone:
            raise
        raise UserError(
            f"rank {rank()}: another rank ended, or did not answer for {minutes:g} minutes; the same line goes on from "
            f"the last checkpoint (--timeout sets how long to wait)"
        ) from error


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
    """Rows of all ranks in rank order; the gradient is summed over ranks, then cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[int], group: dist.ProcessGroup | None) -> Tensor:
        full = x.new_zeros(max(rows), *x.shape[1:])
        full[: len(x)] = x
        parts = [torch.empty_like(full) for _ in rows]
        dist.all_gather(parts, full, group)
        me = dist.get_rank(group)
        ctx.start, ctx.rows, ctx.group = sum(rows[:me]), len(x), group
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.start : ctx.start + ctx.rows], None, None


def _rows_of_all(x: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    mine = torch.tensor([len(x)], device=x.device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group)
    return [int(n) for n in torch.cat(every).tolist()]


def all_gather_cat(x: Tensor, group: dist.ProcessGroup | None = None, *, equal: bool = False) -> Tensor:
    """(n, …) on each rank -> (Σ n, …) in rank order, same dtype, differentiable; of all ranks, or a group's. Ranks may
    have different n, as where one could not read a clip; with `equal` they promise not to, and need not ask."""
    several, found = (True, group) if group is not None else _group_of_statistics()
    if not several:
        return x
    rows = [len(x)] * dist.get_world_size(found) if equal else _rows_of_all(x, found)
    return _ConcatAcrossRanks.apply(x, rows, found)


def gather_objects(item: Any) -> list[Any]:
    """One small picklable object from each rank, in rank order, on every rank."""
    if not is_distributed():
        return [item]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, item)
    return out


def agreed(item: T) -> T:
    """The first rank's, on every rank."""
    if not is_distributed():
        return item
    told = [item]
    dist.broadcast_object_list(told, 0)
    return told[0]


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Each becomes the first rank's, in place; tensors that are whole on every rank."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def once(work: Callable[[], T]) -> T:
    """Done by the first rank while the others wait; all have its result, something small."""
    return agreed(work() if is_main() else None)  # type: ignore[return-value]


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
