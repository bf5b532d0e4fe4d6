"""A block's attention and gradients are the same in each of its forms, and blocks join to the whole."""

import math

import pytest
import torch

from polyspace.utils import attention_blocks as blocks
from polyspace.utils.misc import wide

MASKS = ["none", "biased", "causal", "biased and causal"]


def both(mask: str, dtype: torch.dtype = torch.float64, device: str = "cpu", width: int = 4):
    """Output, log-sum-exp, dq, dk and dv of random tensors; with a bias the last clip has no key."""
    torch.manual_seed(0)
    q, k, v, grad = torch.randn(4, 3, 2, 7, width).to(device, dtype)
    bias, causal = None, "causal" in mask
    if "biased" in mask:
        bias = torch.randn(3, 7).masked_fill(torch.arange(7) > torch.tensor([[6], [3], [-1]]), -torch.inf)
        bias = wide(bias.to(device, dtype))
    out, lse = blocks.attend_block(q, k, v, bias, causal, 0.6)
    blind = torch.where(lse == -torch.inf, torch.inf, lse)
    return out, lse, *blocks.block_gradients(grad, q, k, v, bias, out.to(dtype), blind, causal, 0.6)[:3]


@pytest.mark.parametrize("mask", MASKS)
def test_the_kernel_and_the_loop_over_rows_agree(monkeypatch, mask):
    kernel = both(mask)
    monkeypatch.setattr(blocks, "_on_cpu", lambda q, v: False)
    monkeypatch.setattr(blocks, "ROWS", 3)
    for x, y in zip(kernel, both(mask), strict=True):
        assert not x.isnan().any()
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_what_is_joined_is_the_average_weighted_by_the_sums_of_exponentials():
    out, lse = torch.tensor([[[[2.0]]]]), torch.tensor([[[math.log(3.0)]]]).double()
    blocks.merge_(out, lse, torch.tensor([[[[6.0]]]]), torch.tensor([[[math.log(1.0)]]]))
    assert out.item() == pytest.approx(3.0) and lse.item() == pytest.approx(math.log(4.0))


def test_joining_nothing_changes_nothing_and_nothing_with_nothing_is_nothing():
    nothing = torch.full((1, 1, 1), -torch.inf)
    out, lse = torch.tensor([[[[2.0]]]]), torch.tensor([[[0.5]]]).double()
    blocks.merge_(out, lse, torch.zeros(1, 1, 1, 1), nothing)
    assert (out.item(), lse.item()) == (2.0, 0.5)
    out, lse = torch.zeros(1, 1, 1, 1), nothing.double()
    blocks.merge_(out, lse, torch.zeros(1, 1, 1, 1), nothing)
    assert (out.item(), lse.item()) == (0.0, -math.inf)


def test_no_queries_and_no_keys_are_no_error():
    q, k = torch.randn(1, 2, 0, 4), torch.randn(1, 2, 3, 4)
    assert blocks.attend_block(q, k, k, None, False, 1.0)[0].shape == (1, 2, 0, 4)
    out, lse = blocks.attend_block(k, q, q, None, False, 1.0)
    assert not out.any() and (lse == -torch.inf).all()


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_what_the_cpu_gives(mask, dtype):
    here = both(mask, dtype=dtype, width=8)
    there = both(mask, dtype=dtype, width=8, device="cuda")
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    for x, y in zip(there, here, strict=True):
        torch.testing.assert_close(x.cpu().double(), y.double(), rtol=close, atol=close)
