"""Exact attention over a sequence that is spread over ranks: queries stay, keys and values travel round the ring.

Sources: Liu et al., Ring Attention with Blockwise Transformers, arXiv 2310.01889; the balanced order of chunks for
causal masks is Brandon et al., Striped Attention, arXiv 2311.09431, in the form discussed in public as zigzag: of 2n
chunks, rank r holds numbers r and 2n − 1 − r.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from polyspace.utils.attention_blocks import attend_block, block_gradients, merge_
from polyspace.utils.misc import full_precision, wide
from polyspace.utils.ring import Gradients, Ring, Transfer, agree, gather

LAYOUTS = ("contiguous", "zigzag")


class _RingAttention(torch.autograd.Function):
    """The bias (B,M), −∞ for padding, is small and gathered at once; what else is kept is of the local length."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, ring: Ring) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        agree(q, k, v, bias, ctx.needs_input_grad[3], ring)
        every = None if bias is None else gather(bias, ring.group)
        out = wide(q).new_zeros(*q.shape[:3], v.shape[3])
        lse = torch.full_like(out[..., 0], -torch.inf, dtype=torch.float64)
        with full_precision(q):
            for way, hop, k_there, v_there in ring.blocks(k, v):
                holder = ring.holder(way, hop)
                seen = ring.seen(holder, k.shape[2])
                if seen is None:
                    continue
                rows, keys, causal = seen
                there = None if every is None else every[holder][:, keys]
                part = attend_block(q[:, :, rows], k_there[:, :, keys], v_there[:, :, keys], there, causal, ring.scale)
                merge_(out[:, :, rows], lse[:, :, rows], *part)
        lse = lse.to(out.dtype)
        out = out.to(q.dtype)
        ctx.ring = ring
        ctx.save_for_backward(q, k, v, every, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, every, out, lse = ctx.saved_tensors
        ring: Ring = ctx.ring
        of_bias = ctx.needs_input_grad[3]
        grad = grad.contiguous()
        lse = torch.where(lse == -torch.inf, torch.inf, lse)  # every weight of a query without keys is then 0
        dq, own = torch.zeros_like(wide(q)), Gradients(k, v, of_bias)
        carried: dict[int, Transfer] = {}
        with full_precision(q):
            for way, hop, k_there, v_there in ring.blocks(k, v):
                holder = ring.holder(way, hop)
                sums = Gradients(k, v, of_bias) if hop else own
                seen = ring.seen(holder, k.shape[2])
                if seen is not None:
                    rows, keys, causal = seen
                    there = None if every is None else every[holder][:, keys]
                    dq_part, dk, dv, dbias = block_gradients(
                        *(grad[:, :, rows], q[:, :, rows], k_there[:, :, keys], v_there[:, :, keys], there),
                        *(out[:, :, rows], lse[:, :, rows], causal, ring.scale, of_bias),
                    )
                    dq[:, :, rows] += dq_part
                    sums.add(keys, dk, dv, dbias)
                    del dq_part, dk, dv, dbias
                del k_there, v_there  # the memory of a block, and of its gradients, for those that come and go
                if hop > 1:
                    sums.flat += carried[way].wait()
                if hop:
                    far = ring.reach[way]
                    carried[way] = Transfer(sums.flat, way if hop < far else -way * far, ring.group)
        for transfer in carried.values():
            own.flat += transfer.wait()
        return dq.to(q.dtype), own.dk.to(k.dtype), own.dv.to(v.dtype), own.dbias, None


def _bias(mask: Tensor | None, bias: Tensor | None, q: Tensor) -> Tensor | None:
    """Padding and bias as one term to add to a key's logits, −∞ for padding; None where there is neither."""
    if mask is None:
        return None if bias is None else wide(bias).to(wide(q).dtype)
    plain = torch.zeros((), device=q.device) if bias is None else bias
    return torch.where(mask, -torch.inf, plain.to(wide(q).dtype))


def _dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    """All on this process, by SDPA."""
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    there = (bias > -torch.inf)[:, None, None]  # (B,1,1,M)
    if causal:
        there = there & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    lowest = torch.finfo(q.dtype).min  # with −∞ some of SDPA's kernels give NaN for a query without keys
    mask = torch.where(there, bias.to(q.dtype)[:, None, None], lowest)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return torch.where(there.any(-1, keepdim=True), out, 0)


def zigzag_ring_attention(
    q: Float[Tensor, "B H N E"],
    k: Float[Tensor, "B H M E"],
    v: Float[Tensor, "B H M V"],
    *,
    group: dist.ProcessGroup | None = None,
    key_padding_mask: Bool[Tensor, "B M"] | None = None,
    key_bias: Float[Tensor, "B M"] | None = None,
    query_padding_mask: Bool[Tensor, "B N"] | None = None,
    is_causal: bool = False,
    layout: str = "contiguous",
    scale: float | None = None,
) -> Float[Tensor, "B H N V"]:
    """softmax(scale·q·kᵀ + bias)·v over the keys of all ranks of `group`, for the local queries; scale is 1/√E if None.

    q, k, v are this rank's shards (utils/sequence.py makes them), k and v of one shape on all ranks. `layout` is
    "contiguous", the r-th of n parts, or "zigzag", chunks r and 2n − 1 − r of 2n, which gives every rank the same work
    under a causal mask, and is refused without one. Every rank must call this, and its backward pass, equally often and
    in the same order, and give or not give masks alike; ranks that differ get a ValueError on a CPU.

    `key_padding_mask` True = never attended to, gradient 0; a query that sees no key gets 0. `key_bias` is added to the
    logits of a key. `query_padding_mask` True = output and gradient 0. Group None is this process alone (SDPA), as is a
    group of one. Sums and merges are in fp32, or fp64 for fp64 input, autocast or not. Exact, forward and backward;
    not differentiable twice.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if layout == "zigzag" and not is_causal:
        raise ValueError("layout='zigzag' balances causal attention only; without a mask shards are contiguous")
    if is_causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal attention needs a key for each query, not {q.shape[2]} and {k.shape[2]}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must be of one dtype, not {q.dtype}, {k.dtype} and {v.dtype}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = _bias(key_padding_mask, key_bias, q)
    if group is None or dist.get_world_size(group) == 1:
        out = _dense(q, k, v, bias, is_causal, scale)
    else:
        if dist.get_rank(group) < 0:
            raise ValueError("this process is not a member of the context group")
        if layout == "zigzag" and k.shape[2] % 2:
            raise ValueError(f"a zigzag shard has two chunks of one length; {k.shape[2]} is odd")
        ring = Ring(group, is_causal, layout == "zigzag", scale)
        out = _RingAttention.apply(q, k, v, bias, ring)
    return out if query_padding_mask is None else torch.where(query_padding_mask[:, None, :, None], 0, out)
