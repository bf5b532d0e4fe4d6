"""DeepSpeed ZeRO-2: parameters whole on every rank, gradients and optimizer state in parts.

DeepSpeed's own file says how it works; what is trained, how many clips and how fast, the phase's configuration says. A
key of the file that contradicts it is an error, "auto" takes it over.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyspace.train.engine import SLOTS, PlainEngine, Precision
from polyspace.train.phase import Phase
from polyspace.utils.checkpoint_io import load_strict
from polyspace.utils.errors import UserError
from polyspace.utils.world import World

OURS = ("optimizer", "scheduler")  # of the file: there is one optimizer and one schedule, the loop's
HALVES = ("fp16", "bf16", "torch_autocast")


def read_config(path: Path) -> dict[str, Any]:
    """The file, checked for what does not depend on a phase."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"--deepspeed_config {path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--deepspeed_config {path} is not valid JSON ({error})") from error
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage > 2:
        raise UserError(f"--deepspeed_config {path}: ZeRO stage {stage}; use --engine fsdp to share parameters too")
    for key in OURS:
        if key in values:
            raise UserError(f"--deepspeed_config {path}: '{key}' is set by the phase's configuration; leave it out")
    for key in HALVES:
        if values.get(key, {}).get("enabled") not in (None, False):
            raise UserError(f"--deepspeed_config {path}: '{key}' casts the moving average too; use --precision bf16")
    return values


def full_config(
    values: dict[str, Any], where: Path, batch: int, accumulate: int, clip: float | None, ranks: int
) -> Any:
    """The file with the phase's batch and norm in it."""
    wanted = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // accumulate // ranks,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip or 0.0,
    }
    for key, value in wanted.items():
        given = values.get(key, "auto")
        if given != "auto" and given != value:
            raise UserError(f"--deepspeed_config {where}: {key} is {given}, the phase's configuration makes it {value}")
    return values | wanted


class DeepSpeedEngine(PlainEngine):
    """`config`: what `full_config` made."""

    def __init__(
        self,
        phase: Phase,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        clip_norm: float | None = 1.0,
        *,
        precision: Precision = "fp32",
        world: World | None = None,
        config: dict[str, Any],
    ) -> None:
        if precision == "fp64":
            raise UserError("--precision fp64 is not for DeepSpeed; use ddp or fsdp")
        import deepspeed

        super().__init__(phase, optimizer, device, clip_norm, precision=precision, world=world)
        self.runner, self.optimizer, *_ = deepspeed.initialize(
            model=self.phase, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.module = self.runner

    def zero_grad(self) -> None:
        """DeepSpeed's step does it."""

    def backward(self, loss: Tensor, micro_batches: int) -> None:
        self.runner.set_gradient_accumulation_boundary(self.last)
        self.runner.backward(loss * self.runner.gradient_accumulation_steps())

    def micro_batch(self, last: bool) -> Any:
        self.last = last
        return super().micro_batch(last)

    def step(self, total: Tensor) -> tuple[Tensor, bool]:
        self.runner.step()
        norm = torch.as_tensor(self.runner.get_global_grad_norm() or 0.0, device=self.device)
        sound = not self.optimizer.overflow and bool(torch.isfinite(self.world.mean(total)))
        return norm, sound

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole tensors, put together from all ranks' parts."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = {float(s["step"]) for s in self.optimizer.optimizer.state.values() if "step" in s}
        out = {}
        for name, parameter in self.phase.named_parameters():
            if not parameter.requires_grad or not steps:
                continue
            for slot in SLOTS[1:]:
                out[f"{slot}/{name}"] = safe_get_full_optimizer_state(parameter, slot).cpu().clone()
            out[f"step/{name}"] = torch.tensor([max(steps)])
        return out

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], where: Path) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        load_strict(self.phase, model, where)
        self.optimizer.refresh_fp32_params()
        for name, parameter in self.phase.named_parameters():
            if f"step/{name}" in optimizer:
                for slot in SLOTS[1:]:
                    safe_set_full_optimizer_state(parameter, optimizer[f"{slot}/{name}"].to(self.device), slot)
        steps = [int(value) for key, value in optimizer.items() if key.startswith("step/")]
        for kept in self.optimizer.optimizer.state.values():
            if steps and "step" in kept:
                kept["step"] = torch.full_like(torch.as_tensor(kept["step"]), max(steps))
