"""FSDP2: parameters, gradients and optimizer state in parts, one on each rank; whole only while they are used.

Single numbers (a threshold, a temperature) can't be cut: every rank has them, and their gradients are averaged here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from polyspace.models.layers import Block
from polyspace.train.engine import PlainEngine, whole
from polyspace.train.phase import Phase
from polyspace.utils.world import World


def shard(phase: Phase, world: World) -> Phase:
    """In place: every transformer block by itself, then the rest. The optimizer is to be made after this."""
    assert world.mesh is not None
    mesh = world.mesh._flatten("ranks") if world.mesh.ndim > 1 else world.mesh
    for module in phase.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(phase, mesh=mesh, ignored_params={p for p in phase.parameters() if p.ndim == 0})
    register_fsdp_forward_method(phase, "evaluate")
    return phase


class FSDPEngine(PlainEngine):
    """`phase` comes sharded."""

    sharded = True

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        assert isinstance(self.phase, FSDPModule)
        self.phase.set_requires_gradient_sync(last)
        yield

    def step(self, total: Tensor) -> tuple[Tensor, bool]:
        params = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        parts = [p for p in params if isinstance(p, DTensor)]
        single = [p for p in params if not isinstance(p, DTensor)]
        for p in single:
            assert p.grad is not None
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        norms = [
            whole(get_total_norm([p.grad for p in some if p.grad is not None])) for some in (parts, single) if some
        ]
        norm = torch.stack(norms).norm()
        sound = bool(torch.isfinite(total) & torch.isfinite(norm))
        if sound:
            for some in (parts, single):
                clip_grads_with_norm_(some, self.clip_norm or float("inf"), norm)
            self.optimizer.step()
        return norm, sound

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], where: Path) -> None:
        """Parts as they are; whole tensors are cut."""
        own = self.phase.state_dict()
        shapes = dict(self.phase.named_parameters())
        for key, value in optimizer.items():
            slot, _, name = key.partition("/")
            if slot != "step" and name in shapes:
                optimizer = optimizer | {key: cut(value, shapes[name])}
        super().load_state({k: cut(v, own[k]) if k in own else v for k, v in model.items()}, optimizer, where)

    def finish(self) -> None:
        for module in self.phase.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                module.set_reshard_after_forward(False, recurse=False)


def cut(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in parts as `like` is."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
