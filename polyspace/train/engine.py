"""How a phase is run: wrapping, backward, update, state. The loop, phases and models don't ask which engine it is.

Every engine averages gradients over all ranks. That is the gradient of the global batch: losses over several clips'
statistics sum over ranks with gradient (utils/distrib.py), others are means that weigh as their clips; and ranks of a
context group, which hold the same clips, each have the gradient of their part of the tokens times their number.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from polyspace.data.batch import VideoBatch
from polyspace.models.vjepa.predictor import share_tokens
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.checkpoint_io import load_strict
from polyspace.utils.distrib import statistics_over
from polyspace.utils.world import World

Precision = Literal["fp32", "bf16", "fp64"]
SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


@runtime_checkable
class Engine(Protocol):
    """The interface that the loop uses. A state is tensors by name: whole ones, or this rank's parts of them where it
    is `sharded`; optimizer's by `slot/parameter`."""

    phase: Phase
    device: torch.device
    world: World
    sharded: bool

    def update(self, batches: list[VideoBatch], lr: float, clips: int | None = None) -> tuple[StepOutput, bool]: ...
    def evaluate(self, step: int) -> dict[str, Any]: ...
    def model_state(self) -> dict[str, Tensor]: ...
    def optimizer_state(self) -> dict[str, Tensor]: ...
    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], where: Path) -> None: ...
    def finish(self) -> None: ...


class PlainEngine:
    """One process, or the common part of several: forward and backward over the micro-batches, clip, step.

    A non-finite loss or gradient leaves parameters and optimizer untouched and is reported by `update`'s second value.
    `precision`: bf16 is autocast, parameters and the moving average stay in fp32; fp64 is for comparisons.
    """

    sharded = False

    def __init__(
        self,
        phase: Phase,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        clip_norm: float | None = 1.0,
        *,
        precision: Precision = "fp32",
        world: World | None = None,
    ) -> None:
        self.phase = in_precision(phase, precision).to(device)
        self.optimizer, self.device, self.clip_norm = optimizer, device, clip_norm
        self.precision, self.world = precision, world or World()
        self.module: torch.nn.Module = self.phase

    def update(self, batches: list[VideoBatch], lr: float, clips: int | None = None) -> tuple[StepOutput, bool]:
        """One step on the mean of the micro-batches' losses, each weighing as its clips; the means of loss and metrics,
        and whether it counted. `clips`: how many all ranks' batches hold together; None where this is the only one."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.zero_grad()
        total: Tensor | float = 0.0
        metrics: dict[str, list[Tensor]] = {}
        clips = clips or sum(len(batch) for batch in batches)
        for number, batch in enumerate(batches):
            share = len(batch) * self.world.data_size / clips
            with self.micro_batch(number + 1 == len(batches)):
                with statistics_over(self.world.data or "all"), self.autocast():
                    output = self.module(self.cast(batch))
                self.backward(output.loss * share)
            total = total + output.loss.detach() * share
            for name, value in output.metrics.items():
                metrics.setdefault(name, []).append(value)
        assert isinstance(total, Tensor)
        total = self.world.mean(total)
        norm, sound = self.step(total)
        means = {name: torch.stack(values).mean() for name, values in metrics.items()}
        return StepOutput(total, means | {"grad_norm": norm}), sound

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Of one micro-batch's loss, weighed."""
        loss.backward()

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of each micro-batch; ranks need to talk at the last one only."""
        return nullcontext()

    def step(self, total: Tensor) -> tuple[Tensor, bool]:
        """Clip and update if all ranks' loss and gradient are finite; the gradient's norm, and whether."""
        params = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = whole(torch.nn.utils.clip_grad_norm_(params, self.clip_norm or float("inf"))).detach()
        sound = bool(torch.isfinite(total) & torch.isfinite(norm))
        if sound:
            self.optimizer.step()
        return norm, sound

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def cast(self, batch: VideoBatch) -> VideoBatch:
        """On the device, and in fp64 where that is asked for."""
        batch = batch.to(self.device)
        if self.precision != "fp64":
            return batch

        def wide(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: wide(v) for k, v in value.items()}
            return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

        return replace(batch, **{f.name: wide(getattr(batch, f.name)) for f in fields(batch)})

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, Any]:
        """The phase's own evaluation, the same on every rank."""
        self.phase.eval()
        with statistics_over("none"), self.autocast():
            return self.phase.evaluate(step)

    def model_state(self) -> dict[str, Tensor]:
        return self.phase.state_dict()

    def optimizer_state(self) -> dict[str, Tensor]:
        out = {}
        for name, parameter in self.phase.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                out[f"{slot}/{name}"] = value.reshape(1) if slot == "step" else value
        return out

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], where: Path) -> None:
        """What `model_state` and `optimizer_state` of any engine gave; `where` is for the words of an error."""
        load_strict(self.phase, model, where)
        for name, parameter in self.phase.named_parameters():
            if f"step/{name}" in optimizer:
                slots = {slot: optimizer[f"{slot}/{name}"] for slot in SLOTS}
                self.optimizer.state[parameter] = {
                    slot: (value.reshape(()) if slot == "step" else value).to(parameter.device, copy=True)
                    for slot, value in slots.items()
                }

    def finish(self) -> None:
        """After the last update: the phase is whole on every rank, and each works by itself."""
        share_tokens(self.phase, None)


class DDPEngine(PlainEngine):
    """Every rank has the whole phase; gradients are averaged while they are made (torch's DistributedDataParallel)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        ids = [self.device.index] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options = {"device_ids": ids, "find_unused_parameters": True, buffers: False}
        self.module = DistributedDataParallel(self.phase, **options)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        assert isinstance(self.module, DistributedDataParallel)
        return nullcontext() if last else self.module.no_sync()


def in_precision(phase: Phase, precision: Precision) -> Phase:
    return phase.double() if precision == "fp64" else phase


def whole(value: Tensor) -> Tensor:
    """A tensor that is spread over ranks, put together; any other as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
