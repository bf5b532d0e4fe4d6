"""Small things that both halves need: device, seeds, padding, masked means, straight-through."""

import contextlib
import functools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyspace.utils.errors import UserError

P, R = ParamSpec("P"), TypeVar("R")
_HANDED_ON = {"nt_xent_loss": "polyspace.losses.contrastive", "CEMPlanner": "polyspace.planning.cem"}


def __getattr__(name: str) -> object:
    """Names that others look for here; imported when asked for, the one upward import allowed."""
    if name in _HANDED_ON:
        import importlib

        return getattr(importlib.import_module(_HANDED_ON[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_device(name: str = "auto") -> torch.device:
    """`auto` takes this rank's GPU where there is one; a named device that isn't there is a UserError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no usable CUDA device")
    return device


def set_seed(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch, and return a CPU generator of its own seeded alike."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for one operation of torch, also in threads that begin inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cached(make: Callable[P, R]) -> Callable[P, R]:
    """Keeps the last results of a function whose tensors depend on sizes alone; not while torch traces: what is made
    then belongs to that graph, and would spoil whatever takes it from the cache later."""
    kept = functools.lru_cache(maxsize=64)(make)

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (make if torch.compiler.is_compiling() else kept)(*args, **kwargs)  # type: ignore[arg-type]

    return call


def pad_stack(items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors (n_i, …) -> padded (B, max n, …) with zeros and `valid` (B, max n), True where real."""
    longest = max(item.shape[0] for item in items)
    out = items[0].new_zeros(len(items), longest, *items[0].shape[1:])
    valid = torch.zeros(len(items), longest, dtype=torch.bool, device=out.device)
    for row, item in enumerate(items):
        out[row, : item.shape[0]] = item
        valid[row, : item.shape[0]] = True
    return out, valid


def masked_mean(x: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
    """Mean over valid tokens; a row without any gives 0, never NaN."""
    weight = valid.to(x.dtype)[..., None]
    return torch.where(valid[..., None], x, 0).sum(1) / weight.sum(1).clamp_min(1)


def full_precision(x: Tensor) -> torch.autocast:
    """A scope in which autocast does not narrow what is computed on x's device: for sums of coordinates and decisions
    near a threshold, which bf16 is too coarse for."""
    return torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """x in fp32, or as it is if it is wider."""
    return x if x.dtype == torch.float64 else x.float()


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard.detach() + (soft - soft.detach())
