"""The ranks of a run in two directions: those with other clips, and those that share the tokens of the same ones."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from polyspace.utils import distrib
from polyspace.utils.errors import UserError


@dataclass(frozen=True)
class World:
    """`mesh` has the axes data and context; None on one process. Ranks of one context group hold the same clips, each
    a part of their tokens; ranks of one data group hold different clips of an update."""

    mesh: DeviceMesh | None = None

    @property
    def data(self) -> dist.ProcessGroup | None:
        return None if self.mesh is None else self.mesh.get_group("data")

    @property
    def context(self) -> dist.ProcessGroup | None:
        """None where every rank holds whole clips."""
        several = self.mesh is not None and self.mesh["context"].size() > 1
        return self.mesh.get_group("context") if several and self.mesh is not None else None

    @property
    def data_size(self) -> int:
        return 1 if self.mesh is None else self.mesh["data"].size()

    @property
    def data_rank(self) -> int:
        return 0 if self.mesh is None else self.mesh.get_local_rank("data")

    def own(self, items: Tensor) -> Tensor:
        """This rank's part of a micro-batch's items (n,): as many for each data rank, in order."""
        return items.chunk(self.data_size)[self.data_rank]

    def shares(self, counts: list[int], device: torch.device) -> Tensor:
        """(data ranks, micro-batches): how many clips each data rank could read for each."""
        if self.data is None:
            return torch.tensor([counts])  # not on the device: nobody need wait for it
        mine = torch.tensor(counts, device=device)
        every = [torch.empty_like(mine) for _ in range(self.data_size)]
        dist.all_gather(every, mine, self.data)
        return torch.stack(every)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over data ranks, without gradient."""
        if self.data is None:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self.data)
        return total / self.data_size

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so on any rank."""
        if not distrib.is_distributed():
            return flag
        told = torch.tensor(float(flag), device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)


def make_world(context: int, device: torch.device) -> World:
    """The mesh of all ranks, neighbours in a context group; UserError where they don't divide."""
    if not distrib.is_distributed():
        if context > 1:
            raise UserError(f"context groups of {context} ranks need as many processes: start them with torchrun")
        return World()
    ranks = distrib.world_size()
    if ranks % context:
        raise UserError(f"{ranks} ranks do not divide into context groups of {context}")
    return World(init_device_mesh(device.type, (ranks // context, context), mesh_dim_names=("data", "context")))


def mean_of(values: dict[str, Any]) -> dict[str, Any]:
    """Means over ranks of what all of them have."""
    every = distrib.gather_objects(values)
    return {key: sum(v[key] for v in every) / len(every) for key in values if all(key in v for v in every)}
