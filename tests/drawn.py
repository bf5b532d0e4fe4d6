"""Drawn inputs for the property tests: shapes by hypothesis, values by seed, so that an example is a few numbers."""

import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**31 - 1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def permutation(seed: int, n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, d: int) -> torch.Tensor:
    """Orthogonal (d,d), float64."""
    return torch.linalg.qr(normal(seed, d, d, dtype=torch.float64))[0]
