"""The target encoder: a moving average of the online one, in fp32 (or wider) whatever the online one computes in."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from polyspace.utils.distrib import broadcast_

M = TypeVar("M", bound=nn.Module)


class Ema(nn.Module, Generic[M]):
    """A frozen fp32 copy of `model`. `update` moves `.model` (1 − decay) of the way to the online one.

    bf16 can't hold the step: 1 − 0.99925 is below its resolution, so a bf16 copy would stand still for ever.
    Buffers are copied, not averaged. Source: BYOL, arXiv 2006.07733, section 3.1.
    """

    def __init__(self, model: M) -> None:
        super().__init__()
        self.model: M = copy.deepcopy(model).float().requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Ema[M]":
        """Always in eval mode: a target has no dropout."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def update(self, online: M, decay: float, broadcast: bool = False) -> None:
        """target ← decay·target + (1 − decay)·online. All ranks come to the same by themselves, since their online
        models are the same; with `broadcast` they take the first rank's."""
        if not 0 <= decay <= 1:
            raise ValueError(f"an EMA decay lies in 0..1, not {decay}")
        targets: list[Tensor] = list(self.model.parameters())
        sources: list[Tensor] = [p.detach().to(t.dtype) for p, t in zip(online.parameters(), targets, strict=True)]
        torch._foreach_lerp_(targets, sources, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), online.buffers(), strict=True):
            mine.copy_(theirs)
        if broadcast:
            broadcast_([*targets, *self.model.buffers()])
