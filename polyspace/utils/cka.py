"""Linear centred kernel alignment between two feature matrices (Kornblith et al. 2019), plain and debiased."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.utils.moments import Moments


def linear_cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], *, debiased: bool = False) -> Float[Tensor, ""]:
    """CKA = HSIC(x,y) / √(HSIC(x,x)·HSIC(y,y)) with linear kernels, as a float64 scalar tensor.

    The plain form is biased upwards when n is not much larger than the widths: independent noise of 1024 and 768
    dims gives 0.63 at n = 512. Decide on the debiased one (needs n ≥ 4; may be slightly negative).
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"need two matrices with equal row counts, got {tuple(x.shape)} and {tuple(y.shape)}")
    return torch.tensor(Moments().update(x, y).linear_cka(debiased), dtype=torch.float64)


class CkaMeter:
    """Linear CKA between many spaces over minibatches: each update adds the batch's HSIC of every pair, and `matrix`
    divides the sums. With the U-statistic (`debiased`) they estimate HSIC without bias whatever the size of the batches
    (Nguyen et al. 2021, arXiv 2010.15327, eq. 3), and one update of all rows is the debiased CKA of these rows. The
    biased form depends on that size: the mean of many small batches is far above the value of the whole.

    >>> meter = CkaMeter(["a", "b"]); meter.update({"a": x, "b": y}); meter.matrix()  # (2,2)
    """

    def __init__(self, names: Sequence[str], debiased: bool = True) -> None:
        self.names, self.debiased = list(names), debiased
        self._sums = torch.zeros(len(self.names), len(self.names), dtype=torch.float64)

    def update(self, features: Mapping[str, Tensor]) -> None:
        """Rows (n,·) of the same n clips in every space; n ≥ 4."""
        least = 4 if self.debiased else 2
        sizes = {len(features[name]) for name in self.names}
        if len(sizes) != 1 or min(sizes) < least:
            raise ValueError(f"every space needs the same rows, at least {least}; got {sorted(sizes)}")
        kernels = []
        for name in self.names:
            x = features[name].double()
            x = x - x.mean(0)  # both forms ignore a shift; sums are better kept small
            kernels.append(x @ x.T)
        centred = torch.stack([_u_centred(k) if self.debiased else k for k in kernels]).flatten(1)
        n = sizes.pop()
        self._sums += (centred @ centred.T).cpu() / (n * (n - 3) if self.debiased else (n - 1) ** 2)

    def matrix(self) -> Float[Tensor, "S S"]:
        """CKA of every pair; 0 where a space is constant, 1 on the diagonal elsewhere."""
        own = self._sums.diagonal().clamp_min(0)
        scale = (own[:, None] * own).sqrt()
        return torch.where(scale > 0, self._sums / scale.clamp_min(1e-300), 0)


def _u_centred(kernel: Tensor) -> Tensor:
    """The U-centred kernel of Székely and Rizzo (2014): ⟨Ã, B̃⟩/(n(n − 3)) is the debiased HSIC."""
    n = len(kernel)
    k = kernel.clone().fill_diagonal_(0)
    rows = k.sum(1, keepdim=True) / (n - 2)
    out = k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))
    return out.fill_diagonal_(0)
