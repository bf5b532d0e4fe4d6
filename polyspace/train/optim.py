"""Optimizer groups and learning rate schedules."""

import math

import torch
from torch import nn


def cosine_schedule(step: int, max_steps: int, start: float, end: float, period: int | None = None) -> float:
    """Half a cosine from `start` at step 0 to `end` at step max_steps − 1 and after; with a period, a full wave that
    is back at `start` every `period` steps."""
    if step < 0 or max_steps < 1:
        raise ValueError(f"step {step} of {max_steps} is no place in a schedule")
    if period is not None:
        angle = 2 * math.pi * step / period
    elif step >= max_steps - 1:
        return end
    else:
        angle = math.pi * step / (max_steps - 1)
    return end - (end - start) * (math.cos(angle) + 1) / 2


def warmup_cosine(
    step: int, max_steps: int, peak: float, warmup_ratio: float = 0.05, final_ratio: float = 0.01
) -> float:
    """Linear rise over the first `warmup_ratio` of the steps, then a cosine down to final_ratio·peak."""
    warmup = round(max_steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine_schedule(step - warmup, max(1, max_steps - warmup), peak, peak * final_ratio)


def build_adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW on the trained parameters; only matrices decay (biases, norms, gates and single vectors don't)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98), fused=True)
