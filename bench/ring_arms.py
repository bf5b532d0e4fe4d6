"""The ways to attend over a long sequence that bench/ring.py compares: one process, our ring, torch's, a package's."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.experimental._context_parallel import _attention as context_parallel

from polyspace.utils.distrib import zigzag_ring_attention

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Arm:
    """(q, k, v, causal) -> output, of shards (B,H,S,E); how shards lie under a causal mask; the number of processes."""

    attend: Attend
    layout: str = "contiguous"
    ranks: int = 2


def one_process(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def ours(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    layout = "zigzag" if causal else "contiguous"
    return zigzag_ring_attention(q, k, v, group=dist.group.WORLD, is_causal=causal, layout=layout)


class _TorchRing(torch.autograd.Function):
    """The ring inside torch's context_parallel, with the kernels of SDPA on a CPU, for which the public entry has no
    backward pass (torch 2.13: "does not have a sharding strategy registered")."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        context_parallel._cp_options.enable_load_balance = causal
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = context_parallel._templated_ring_attention(dist.group.WORLD, 2, kernel, q, k, v, causal)
        ctx.causal = causal
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        context_parallel._cp_options.enable_load_balance = ctx.causal
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        found = context_parallel._templated_ring_attention_backward(
            *(dist.group.WORLD, 2, kernel, grad, "grad_out", q, k, v, out, lse, ctx.causal), dropout_p=0.0
        )
        return *found[:3], None


def torch_ring(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return _TorchRing.apply(q, k, v, causal)


def package(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """ring-attention-pytorch, which has heads behind the sequence and, without CUDA, shards that are not balanced."""
    from ring_attention_pytorch import ring_flash_attn

    parts = (x.transpose(1, 2) for x in (q, k, v))
    ranks = dist.get_world_size()
    return ring_flash_attn(*parts, causal=causal, ring_reduce_col=True, ring_size=ranks).transpose(1, 2)


ARMS = {
    "SDPA, one process": Arm(one_process, ranks=1),
    "ours": Arm(ours, "zigzag"),
    "torch's ring": Arm(torch_ring, "zigzag"),
}
if find_spec("ring_attention_pytorch") is not None:  # pip install --no-deps ring-attention-pytorch
    ARMS["ring-attention-pytorch"] = Arm(package)
