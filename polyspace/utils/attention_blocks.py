"""Attention of some queries to one block of keys, with the log-sum-exp by which blocks join exactly; and its gradients.

Everything is in fp32, or fp64 for fp64 input. A key whose bias is −∞ is not there; a query that sees no key gets the
output 0 and the log-sum-exp −∞. The kernels ask for tensors whose last axis is contiguous. Sources: Dao et al.,
FlashAttention, arXiv 2205.14135, section 3 and appendix B; Liu et al., Ring Attention, arXiv 2310.01889.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.utils.misc import wide

ROWS = 1024  # queries whose logits are held at a time where no fused kernel serves
_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_cuda = torch.ops.aten._scaled_dot_product_flash_attention
_cuda_gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward


def attend_block(
    q: Float[Tensor, "B H N E"],
    k: Float[Tensor, "B H M E"],
    v: Float[Tensor, "B H M V"],
    bias: Float[Tensor, "B M"] | None,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "B H N V"], Float[Tensor, "B H N"]]:
    """softmax(scale·q·kᵀ + bias)·v and its log-sum-exp; `causal`: query i sees the keys up to i (N = M)."""
    if _on_cuda_cores(q, v, bias):
        out, lse = _cuda(q, k, v, 0.0, causal, scale=scale)[:2]
        return wide(out), lse
    q, k, v = wide(q), wide(k), wide(v)
    if not _on_cpu(q, v):
        parts = [_rows(q[:, :, i : i + ROWS], k, v, bias, causal, scale, i) for i in range(0, max(1, q.shape[2]), ROWS)]
        return torch.cat([part[0] for part in parts], 2), torch.cat([part[1] for part in parts], 2)
    out, lse = _cpu(q, k, v, 0.0, causal, attn_mask=None if bias is None else bias[:, None, None], scale=scale)
    if bias is None:
        return out, lse
    # the kernel calls the log-sum-exp of no key 0
    there = bias > -torch.inf
    sees = there.cumsum(1) > 0 if causal else there.any(1, keepdim=True)  # (B,N) or (B,1)
    out = torch.where(sees[:, None, :, None], out, 0)
    return out, torch.where(sees[:, None], lse, -torch.inf)


def merge_(
    out: Float[Tensor, "B H N V"],
    lse: Float[Tensor, "B H N"],
    part: Float[Tensor, "B H N V"],
    part_lse: Float[Tensor, "B H N"],
) -> None:
    """Add a block to what is known of others, in place: out ← out + σ(lse′ − lse)·(out′ − out); lse is then of both.

    `lse` is in fp64 whatever the rest is: rounded once a block, it would cost gradients a tenth of their precision."""
    part_lse = part_lse.to(lse.dtype)
    weight = torch.where(part_lse == -torch.inf, 0, torch.sigmoid(part_lse - lse))  # −∞ − (−∞) is no number
    out.lerp_(part, weight[..., None].to(out.dtype))
    lse.copy_(torch.logaddexp(lse, part_lse))


def block_gradients(
    grad: Float[Tensor, "B H N V"],
    q: Float[Tensor, "B H N E"],
    k: Float[Tensor, "B H M E"],
    v: Float[Tensor, "B H M V"],
    bias: Float[Tensor, "B M"] | None,
    out: Float[Tensor, "B H N V"],
    lse: Float[Tensor, "B H N"],
    causal: bool,
    scale: float,
    of_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What one block adds to dq, and its dk, dv and (with `of_bias`) dbias: `out` and `lse` are of all blocks together,
    with lse = +∞ for a query that sees no key at all."""
    if _on_cuda_cores(q, v, bias):
        seed = torch.zeros(2, dtype=torch.int64, device=q.device)  # of the dropout that there is not
        lengths = (None, None, q.shape[2], k.shape[2])
        found = _cuda_gradients(
            grad, q, k, v, out.to(q.dtype), lse.contiguous(), *lengths, 0.0, causal, seed, seed[:1], scale=scale
        )
        return wide(found[0]), wide(found[1]), wide(found[2]), None
    grad, q, k, v, out = wide(grad), wide(q), wide(k), wide(v), wide(out)
    if _on_cpu(q, v) and not of_bias:
        mask = None if bias is None else bias[:, None, None]
        return *_cpu_gradients(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale), None
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dbias = torch.zeros_like(bias) if of_bias and bias is not None else None
    delta = (grad * out).sum(-1, keepdim=True)
    for start in range(0, q.shape[2], ROWS):
        part = slice(start, start + ROWS)
        weights = (_logits(q[:, :, part], k, bias, causal, scale, start) - lse[:, :, part, None]).exp()
        dlogits = weights * (grad[:, :, part] @ v.mT - delta[:, :, part])
        dq[:, :, part] = dlogits @ k * scale
        dk += dlogits.mT @ q[:, :, part] * scale
        dv += weights.mT @ grad[:, :, part]
        if dbias is not None:
            dbias += dlogits.sum((1, 2))
    return dq, dk, dv, dbias


def _on_cpu(q: Tensor, v: Tensor) -> bool:
    """Whether torch's own CPU kernel takes it: one head width, and something there."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and 0 not in (q.numel(), v.numel())


def _on_cuda_cores(q: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether torch's FlashAttention on CUDA takes it as it is: 16 bits, no bias, a head width of whole 8."""
    if q.device.type != "cuda" or bias is not None or q.dtype not in (torch.float16, torch.bfloat16):
        return False
    modern = torch.cuda.get_device_capability(q.device) >= (8, 0)
    return modern and q.shape[-1] == v.shape[-1] <= 256 and q.shape[-1] % 8 == 0


def _logits(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float, start: int) -> Tensor:
    """(B,H,n,M) of the queries from `start` on."""
    logits = q @ k.mT * scale
    if bias is not None:
        logits += bias[:, None, None]
    if causal:
        key = torch.arange(k.shape[2], device=k.device)
        query = torch.arange(start, start + q.shape[2], device=q.device)
        logits.masked_fill_(key > query[:, None], -torch.inf)
    return logits


def _rows(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float, start: int
) -> tuple[Tensor, Tensor]:
    logits = _logits(q, k, bias, causal, scale, start)
    lse = logits.logsumexp(-1)
    weights = (logits - torch.where(lse == -torch.inf, 0, lse)[..., None]).exp()
    return weights @ v, lse
