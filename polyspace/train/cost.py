"""What a forward costs: FLOPs and parameters counted, latency measured, for backbones, converters and heads."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.converters import ConverterBank
from polyspace.models.spaces.fusion import FusionHead
from polyspace.utils.flops import forward_flops, num_params


def latency(run: Callable[[], Any], device: torch.device, budget_s: float = 10.0, most: int = 50) -> dict[str, float]:
    """Median and 95th percentile seconds of a call: one warm-up, then calls until `budget_s` or `most` (at least 3)."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget_s and len(times) < most):
        times.append(once())
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_s": float(p50), "p95_s": float(p95), "calls": len(times)}


@torch.inference_mode()
def backbone_cost(card: BackboneCard, device: torch.device, measure: bool, budget_s: float) -> dict[str, Any]:
    """One clip through one backbone, from pixels on the device to the clip feature."""
    cost: dict[str, Any] = {"flops": card.flops(), "params": card.params()}
    if measure:
        model = card.load().to(device)
        video = torch.zeros(1, *card.input_shape, device=device)
        cost |= latency(lambda: model(video).pooled, device, budget_s)
    return cost


@torch.inference_mode()
def head_cost(bank: ConverterBank, fusion: FusionHead, device: torch.device, budget_s: float) -> dict[str, Any]:
    """Converters and fusion head together, from the student's clip feature to the logits."""
    chain = _Chain(bank, fusion).to(device)
    x = torch.zeros(1, fusion.student.in_features, device=device)
    params = num_params(fusion) + sum(b.numel() for b in bank.buffers())
    return {"flops": forward_flops(chain, x), "params": params} | latency(lambda: chain(x), device, budget_s)


class _Chain(nn.Module):
    def __init__(self, bank: ConverterBank, fusion: FusionHead) -> None:
        super().__init__()
        self.bank, self.fusion = bank, fusion

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fusion(x, self.bank(x))


def cost_table(
    cards: Mapping[str, BackboneCard],
    student: str,
    bank: ConverterBank,
    fusion: FusionHead,
    device: torch.device,
    *,
    measure: bool = True,
    budget_s: float = 10.0,
) -> dict[str, dict[str, Any]]:
    """Rows by name: every part alone, then the sums that a user chooses between (p50 added up)."""
    rows = {name: backbone_cost(card, device, measure, budget_s) for name, card in cards.items()}
    teachers = [name for name in cards if name != student]
    head = head_cost(bank, fusion, device, min(budget_s, 1.0))
    parts = {"student": rows.pop(student), **{f"teacher {n}": rows[n] for n in teachers}, "converters + fusion": head}
    sums = {
        "student + converters + fusion": ["student", "converters + fusion"],
        "all teachers": [f"teacher {n}" for n in teachers],
        "student + teachers": ["student", *(f"teacher {n}" for n in teachers)],
    }
    for name, names in sums.items():
        row: dict[str, Any] = {key: sum(parts[n][key] for n in names) for key in ("flops", "params")}
        if measure:
            row["p50_s"] = sum(parts[n]["p50_s"] for n in names)
        parts[name] = row
    return parts
