"""FSDP2: parameters, gradients and optimizer state in parts, one on each rank; whole only while they are used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

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
    fully_shard(phase, mesh=mesh)
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
        super().finish()
        unshard(self.phase)


def unshard(phase: Phase) -> None:
    """Undo `shard` in place: every rank has whole, plain parameters in modules of their own classes, which any one of
    them can save or use without the others. torch has no way back of its own."""
    whole_ones = {name: whole(p.detach()) for name, p in phase.named_parameters()}
    for path, module in phase.named_modules():
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__bases__[1]  # FSDPBlock is (FSDPModule, Block)
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._state_dict_pre_hooks,
            module._load_state_dict_pre_hooks,
        ):
            hooks.clear()  # all of them are FSDP's: the house has none
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                value = whole_ones[f"{path}.{name}" if path else name]
                module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
    del phase.__dict__["evaluate"]


def cut(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in parts as `like` is."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
