"""Counting operations on the meta device, where attention is not hidden in a fused kernel."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(module: nn.Module, *inputs: Any, **keywords: Any) -> int:
    """FLOPs of one forward, 2 a multiply-add. Give module and inputs on the meta device: torch's counter misses the
    CPU's fused attention (1243 GF instead of 1656 for V-JEPA 2 ViT-L on 16 frames of 256²)."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs, **keywords)
    return int(counter.get_total_flops())


def num_params(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)
