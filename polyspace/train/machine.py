"""Where and by what a run's phases are trained: the device, the ranks, the engine, the precision."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from polyspace.models.vjepa.predictor import share_tokens
from polyspace.train.engine import DDPEngine, Engine, PlainEngine, Precision, in_precision
from polyspace.train.optim import build_adamw
from polyspace.train.phase import Phase
from polyspace.train.settings import TrainingConfig
from polyspace.utils import distrib
from polyspace.utils.errors import UserError
from polyspace.utils.misc import get_device
from polyspace.utils.world import World, make_world

Kind = Literal["plain", "ddp", "fsdp", "deepspeed"]


@dataclass(frozen=True)
class Machine:
    """What phases are given. Of several processes every one has a Machine, equal but for its place in `world`.

    `deepspeed`: what DeepSpeed's own file says, and that file, for messages. `track`: see `fit`."""

    device: torch.device
    world: World = field(default_factory=World)
    kind: Kind = "plain"
    precision: Precision = "fp32"
    deepspeed: tuple[dict[str, Any], Path] | None = None
    track: tuple[str, ...] = ()

    def engine(self, phase: Phase, config: TrainingConfig) -> Engine:
        """The phase wrapped, with its optimizer, for these settings."""
        phase = in_precision(phase, self.precision).to(self.device)
        if self.kind == "fsdp":
            from polyspace.train.engine_fsdp import FSDPEngine, shard

            phase = shard(phase, self.world)
        share_tokens(phase, self.world.context)
        optimizer = build_adamw(phase, config.lr, config.weight_decay)
        common: dict[str, Any] = {"precision": self.precision, "world": self.world}
        given = (phase, optimizer, self.device, config.clip_norm)
        if self.kind == "fsdp":
            return FSDPEngine(*given, **common)
        if self.kind == "deepspeed":
            from polyspace.train.engine_deepspeed import DeepSpeedEngine, full_config

            assert self.deepspeed is not None
            values = full_config(*self.deepspeed, config, self.world.data_size)
            return DeepSpeedEngine(*given, **common, config=values)
        return (DDPEngine if self.kind == "ddp" else PlainEngine)(*given, **common)


def make_machine(
    device: str,
    engine: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto",
    precision: Precision = "fp32",
    context: int = 1,
    deepspeed_config: Path | None = None,
) -> Machine:
    """Of this process, whose group is up where there is one. UserError for what doesn't go together."""
    place = get_device(device)
    alone = not distrib.is_distributed()
    if deepspeed_config is not None and engine != "deepspeed":
        raise UserError(f"--deepspeed_config {deepspeed_config} is for --use_deepspeed 1")
    if engine == "deepspeed" and context > 1:
        raise UserError("--context goes with ddp and fsdp, not with DeepSpeed")
    world = make_world(context, place)
    if engine == "fsdp" and alone:
        raise UserError("--engine fsdp cuts parameters in parts for several processes: start them with torchrun")
    if engine != "deepspeed":
        kind: Kind = "plain" if alone else "ddp" if engine == "auto" else engine
        return Machine(place, world, kind, precision)
    from polyspace.train.engine_deepspeed import check_deepspeed, read_config

    if deepspeed_config is None:
        raise UserError("--use_deepspeed 1 needs its --deepspeed_config FILE (configs/deepspeed_zero2.json)")
    check_deepspeed(alone, precision)
    return Machine(place, world, "deepspeed", precision, (read_config(deepspeed_config), deepspeed_config))


def describe(machine: Machine) -> str:
    """One line for the log of a run on several ranks."""
    ranks = f"{distrib.world_size()} ranks" if distrib.is_distributed() else "one process"
    shape = f" ({machine.world.data_size} × {distrib.world_size() // machine.world.data_size} that share tokens)"
    more = shape if machine.world.context is not None else ""
    return f"{machine.kind} on {ranks}{more}, {machine.precision}, {machine.device.type}"
