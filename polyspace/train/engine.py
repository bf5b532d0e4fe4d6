"""How a phase is run: wrapping, backward, update, state. The loop, phases and models don't ask which engine it is."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.train.phase import Phase, StepOutput


@runtime_checkable
class Engine(Protocol):
    """The interface that the loop uses."""

    phase: Phase
    device: torch.device

    def update(self, batches: list[VideoBatch], lr: float) -> tuple[StepOutput, bool]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PlainEngine:
    """One process: forward and backward over the micro-batches, clip, step.

    A non-finite loss or gradient leaves parameters and optimizer untouched and is reported by `update`'s second value.
    """

    def __init__(
        self, phase: Phase, optimizer: torch.optim.Optimizer, device: torch.device, clip_norm: float | None = 1.0
    ) -> None:
        self.phase, self.optimizer, self.device, self.clip_norm = phase.to(device), optimizer, device, clip_norm

    def update(self, batches: list[VideoBatch], lr: float) -> tuple[StepOutput, bool]:
        """One step on the mean of the micro-batches' losses, each weighing as its clips; the means of loss and metrics,
        and whether it counted."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        total: Tensor | float = 0.0
        metrics: dict[str, list[Tensor]] = {}
        clips = sum(len(batch) for batch in batches)
        for batch in batches:
            output, share = self.phase(batch.to(self.device)), len(batch) / clips
            (output.loss * share).backward()
            total = total + output.loss.detach() * share
            for name, value in output.metrics.items():
                metrics.setdefault(name, []).append(value)
        params = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(params, self.clip_norm or float("inf"))
        assert isinstance(total, Tensor)
        sound = bool(torch.isfinite(total) & torch.isfinite(norm))
        if sound:
            self.optimizer.step()
        means = {name: torch.stack(values).mean() for name, values in metrics.items()}
        return StepOutput(total, means | {"grad_norm": norm.detach()}), sound

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
