"""What a forward costs: FLOPs and parameters counted, latency and memory measured, for backbones, converters, heads."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.converters import ConverterBank
from polyspace.models.spaces.fusion import FusionHead
from polyspace.utils.flops import forward_flops, num_params
from polyspace.utils.log import Progress
from polyspace.utils.memory import activation_peak, weight_bytes

MOST_ROUNDS, LEAST_ROUNDS = 30, 3
ENOUGH = 20  # calls that a 95th percentile needs
HEAD = "converters + fusion"


def timed_rounds(
    runs: Mapping[str, Callable[[], Any]],
    device: torch.device,
    budget_s: float,
    least: int = LEAST_ROUNDS,
    after: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every call of each run, one of each in turn, so that a slow moment of the machine hits all alike:
    rounds until `budget_s` is spent, at least `least` and at most 30. `after` is called after each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for made in range(MOST_ROUNDS):
        if made >= least and time.perf_counter() - start >= budget_s:
            break
        for name, run in runs.items():
            times[name].append(_seconds(run, device))
        after()
    return times


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class _Chain(nn.Module):
    """Converters and fusion head together, from the student's clip feature to the logits."""

    def __init__(self, bank: ConverterBank, fusion: FusionHead) -> None:
        super().__init__()
        self.bank, self.fusion = bank, fusion

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fusion(x, self.bank(x))


def choices(student: str, teachers: Sequence[str]) -> dict[str, list[str]]:
    """The rows of the table, each with the parts that it runs: the parts alone, then what a user chooses between."""
    rows = {"student": [student], **{f"teacher {name}": [name] for name in teachers}, HEAD: [HEAD]}
    rows[f"student + {HEAD}"] = [student, HEAD]
    rows["all teachers"] = list(teachers)
    rows["student + teachers"] = [student, *teachers]
    return rows


@torch.inference_mode()
def cost_table(
    cards: Mapping[str, BackboneCard],
    student: str,
    bank: ConverterBank,
    fusion: FusionHead,
    device: torch.device,
    *,
    batches: Sequence[int] = (1, 8),
    budget_s: float = 10.0,
) -> dict[str, dict[str, Any]]:
    """What each of `choices` takes: {row: {flops (a clip), params, batches: {size: p50_s, p95_s (a call;
    None of fewer than 20), calls, peak_mib}}}; without `batches` nothing is measured.

    A row of several parts is timed as the sum of their calls within a round. Its peak memory is all weights and the
    largest part's activations, since the parts run one after the other. `budget_s` is for each part and batch size;
    where one call of each takes longer than all of it, one timed call has to do.
    """
    chain = copy.deepcopy(_Chain(bank, fusion)).to(device).eval()  # the caller goes on with its own
    width = fusion.student.in_features
    flops = {name: card.flops() for name, card in cards.items()}
    params = {name: card.params() for name, card in cards.items()}
    flops[HEAD] = forward_flops(chain, torch.zeros(1, width, device=device))
    params[HEAD] = num_params(chain) + sum(b.numel() for b in bank.buffers())  # linear maps are buffers
    table: dict[str, dict[str, Any]] = {
        row: {"flops": sum(flops[p] for p in parts), "params": sum(params[p] for p in parts)}
        for row, parts in choices(student, [n for n in cards if n != student]).items()
    }
    if batches:
        models: dict[str, nn.Module] = {name: card.load().to(device) for name, card in cards.items()} | {HEAD: chain}
        shapes = {name: card.input_shape for name, card in cards.items()} | {HEAD: (width,)}
        for entry in table.values():
            entry["batches"] = {}
        for size in batches:
            measured = _measure(models, shapes, size, device, budget_s)
            for row, parts in choices(student, [n for n in cards if n != student]).items():
                table[row]["batches"][str(size)] = _sum([measured[p] for p in parts])
    return table


def _measure(
    models: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    size: int,
    device: torch.device,
    budget_s: float,
) -> dict[str, tuple[list[float], int, int]]:
    """(seconds of every call, bytes of weights, peak bytes of activations) of each model at a batch size."""
    runs = {}
    for name, model in models.items():
        x = torch.randn(size, *shapes[name], device=device)  # what never moves would cost our own encoder less
        runs[name] = partial(model, x)
    if device.type == "cuda":
        for run in runs.values():  # libraries take workspaces at their first call, and keep them
            run()
    start = time.perf_counter()
    peaks = {name: activation_peak(run, device) for name, run in runs.items()}  # warms up, too
    budget = budget_s * len(runs)
    least = LEAST_ROUNDS if time.perf_counter() - start < budget else 1
    with Progress(MOST_ROUNDS, f"latency, batch {size} (at most {budget:.0f} s)", "round") as bar:
        times = timed_rounds(runs, device, budget, least, bar.step)
    return {name: (times[name], weight_bytes(models[name]), peaks[name]) for name in runs}


def _sum(parts: Sequence[tuple[list[float], int, int]]) -> dict[str, Any]:
    times, weights, activations = zip(*parts, strict=True)
    p50, p95 = np.percentile(np.sum(times, 0), [50, 95])
    calls, peak = len(times[0]), (sum(weights) + max(activations)) / 2**20
    return {"p50_s": float(p50), "p95_s": float(p95) if calls >= ENOUGH else None, "calls": calls, "peak_mib": peak}
