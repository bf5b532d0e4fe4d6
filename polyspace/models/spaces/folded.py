"""A converter for many vectors: standardising and back-transforming are folded into its matrices.

ResidualMLP is linear(x) + (GELU((x − μ)/σ · W₁ + b₁) · W₂ + b₂) · back. With V₁ = W₁/σ and V₂ = W₂ · back it is
x · W + GELU((x − μ) · V₁ + b₁) · V₂ + c₂: a product less. (μ · V₁ is not folded into b₁: where a mean is large beside
its spread, x · V₁ would cancel against it and leave little.)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.spaces.converters import Converter, ResidualMLP


class FoldedConverter:
    """What `converter` computes, into memory of the caller's: equal up to rounding (the matrices are made in float64),
    and for a linear converter bit for bit."""

    def __init__(self, converter: Converter) -> None:
        self.inner: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # μ (d,), V₁ (d,h), b₁ (h,), V₂ (h,e)
        if not isinstance(converter, ResidualMLP):
            self.weight, self.bias = converter.weight, converter.bias
            return
        first, last = converter.mlp[0], converter.mlp[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        with torch.no_grad():
            back, std = converter.back.double(), converter.std.double()
            into = first.weight.double().T / std[:, None]
            added = last.weight.double().T @ back
            self.inner = converter.mean, into.float().contiguous(), first.bias.detach(), added.float().contiguous()
            self.weight = converter.linear.weight
            self.bias = (converter.linear.bias.double() + last.bias.double() @ back).float()

    @torch.inference_mode()
    def into(self, x: Float[Tensor, "B d"], out: Float[Tensor, "B e"]) -> None:
        """`out` becomes the conversion of x."""
        torch.mm(x, self.weight, out=out).add_(self.bias)
        if self.inner is not None:
            mean, into, shift, added = self.inner
            out.addmm_(F.gelu(torch.addmm(shift, x - mean, into)), added)
