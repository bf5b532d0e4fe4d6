"""DeepSpeed ZeRO-2: parameters whole on every rank, gradients and optimizer state in parts.

DeepSpeed's own file says how it works; what is trained, how many clips and how fast, the phase's configuration says. A
key of the file that contradicts it is an error, "auto" takes it over.
"""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyspace.train.engine import SLOTS, PlainEngine, Precision
from polyspace.train.settings import TrainingConfig
from polyspace.utils.checkpoint_io import load_strict
from polyspace.utils.errors import UserError
from polyspace.utils.reading import read_json

OURS = ("optimizer", "scheduler")  # of the file: there is one optimizer and one schedule, the loop's
HALVES = ("fp16", "bf16", "torch_autocast")


def check_deepspeed(alone: bool, precision: Precision) -> None:
    """UserError where DeepSpeed can't be used."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("--use_deepspeed 1 needs the package deepspeed: pip install 'polyspace[deepspeed]'")
    if alone:
        raise UserError("--use_deepspeed 1 needs at least two ranks: deepspeed --num_gpus=2 main.py …, or torchrun")
    if precision == "fp64":
        raise UserError("--precision fp64 is not for DeepSpeed; use ddp or fsdp")


def read_config(path: Path) -> dict[str, Any]:
    """The file, checked for what does not depend on a phase."""
    values = read_json(path, "--deepspeed_config")
    zero = values.get("zero_optimization") if isinstance(values, dict) else None
    if not isinstance(zero, dict):
        raise UserError(f"--deepspeed_config {path} has no section zero_optimization with a stage of 1 or 2")
    if zero.get("stage") not in (1, 2):
        more = "; use --engine fsdp to share parameters too" if zero.get("stage") == 3 else ", not 1 or 2"
        raise UserError(f"--deepspeed_config {path}: ZeRO stage {zero.get('stage')}{more}")
    for key in OURS:
        if key in values:
            raise UserError(f"--deepspeed_config {path}: '{key}' is set by the phase's configuration; leave it out")
    for key in HALVES:
        if not isinstance(values.get(key, {}), dict):
            raise UserError(f"--deepspeed_config {path}: '{key}' is no section")
        if values.get(key, {}).get("enabled") not in (None, False):
            raise UserError(f"--deepspeed_config {path}: '{key}' casts the moving average too; use --precision bf16")
    return values


def full_config(values: dict[str, Any], where: Path, phase: TrainingConfig, ranks: int) -> dict[str, Any]:
    """The file with the phase's batch and norm in it; UserError where it says something else."""
    wanted = {
        "train_batch_size": phase.batch,
        "train_micro_batch_size_per_gpu": phase.batch // phase.accumulate // ranks,
        "gradient_accumulation_steps": phase.accumulate,
        "gradient_clipping": phase.clip_norm,
    }
    for key, value in wanted.items():
        given = values.get(key, "auto")
        if given != "auto" and given != value:
            raise UserError(f"--deepspeed_config {where}: {key} is {given}, the phase's configuration makes it {value}")
    return values | wanted


class DeepSpeedEngine(PlainEngine):
    """`config`: what `full_config` made."""

    def __init__(self, *args: Any, config: dict[str, Any], **options: Any) -> None:
        import deepspeed

        super().__init__(*args, **options)
        self.runner: Any
        self.zero: Any  # around `optimizer`, whose groups then hold this rank's parts
        self.runner, self.zero, *_ = deepspeed.initialize(
            model=self.phase, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        self.module = self.runner

    def zero_grad(self) -> None:
        """DeepSpeed's step does it."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        self.runner.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed divides by the number of micro-batches, which `loss` is weighed by already."""
        self.runner.backward(loss * self.runner.gradient_accumulation_steps())

    def step(self, total: Tensor) -> tuple[Tensor, bool]:
        norm = torch.as_tensor(self.zero.scaled_global_norm(), device=self.device).float()
        if bool(torch.isfinite(total) & torch.isfinite(norm) & (norm >= 0)):  # −1 stands for one that is not finite
            self.runner.step()
            return norm, True
        self.zero.zero_grad()  # as its own step does behind an overflow
        self.zero.averaged_gradients, self.zero.micro_step_id = {}, -1
        return norm, False

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole tensors, put together from all ranks' parts."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [int(s["step"]) for s in self.zero.optimizer.state.values() if "step" in s]
        out: dict[str, Tensor] = {}
        if not steps:
            return out
        self._link()
        for name, parameter in self.phase.named_parameters():
            if parameter.requires_grad:
                for slot in SLOTS[1:]:
                    out[f"{slot}/{name}"] = safe_get_full_optimizer_state(parameter, slot).cpu().clone()
                out[f"step/{name}"] = torch.tensor([float(max(steps))])
        return out

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], where: Path) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        load_strict(self.phase, model, where)
        self.zero.refresh_fp32_params()
        steps = [float(value) for key, value in optimizer.items() if key.startswith("step/")]
        if not steps:
            return
        for part in self.zero.single_partition_of_fp32_groups:
            zeros = {slot: torch.zeros_like(part) for slot in SLOTS[1:]}
            self.zero.optimizer.state[part] = {"step": torch.tensor(max(steps), device=part.device), **zeros}
        self._link()
        for name, parameter in self.phase.named_parameters():
            if f"step/{name}" in optimizer:
                for slot in SLOTS[1:]:
                    safe_set_full_optimizer_state(parameter, optimizer[f"{slot}/{name}"].to(self.device), slot)

    def _link(self) -> None:
        """Let parameters know their optimizer state. DeepSpeed does so once, behind the first group's first step, when
        the other groups have none yet."""
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()
