"""Orthogonal Procrustes maps between spaces of any two widths, from data or from moments.

Minimises Σ‖s·Rᵀ(x − μx) + μy − y‖² over R with orthonormal rows (d ≤ e) or columns (d ≥ e) and a scale s.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.utils.moments import Moments


@dataclass(frozen=True)
class ProcrustesMap:
    """x (…,d) -> scale·(x − mean_x)·rotation + mean_y (…,e), in x's dtype."""

    rotation: Float[Tensor, "d e"]
    scale: Float[Tensor, ""]
    mean_x: Float[Tensor, " d"]
    mean_y: Float[Tensor, " e"]

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        weight, bias = self.affine()
        return x @ weight.to(x) + bias.to(x)

    def affine(self) -> tuple[Float[Tensor, "d e"], Float[Tensor, " e"]]:
        """The same map as x·weight + bias, in float64."""
        weight = self.scale * self.rotation
        return weight, self.mean_y - self.mean_x @ weight


def fit_procrustes(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], *, center: bool = True, scale: bool = True
) -> ProcrustesMap:
    """Fit on row pairs; float64 inside. `center=False` fixes both means at 0, `scale=False` fixes s = 1."""
    return procrustes_from_moments(Moments().update(x, y), center=center, scale=scale)


def procrustes_from_moments(
    moments: Moments, *, center: bool = True, scale: bool = True, max_iterations: int = 500, tolerance: float = 1e-12
) -> ProcrustesMap:
    """The same from streamed statistics.

    For d ≤ e the thin SVD of C_xy = UΣVᵀ gives R = UVᵀ (Schönemann 1966). For d > e, ‖XR‖ depends on R and no closed
    form is known; starting at UVᵀ, R ← polar(s·C_xy + s²(λ_max I − C_xx)R) majorises the error and lowers it at every
    step, with s at its optimum in between.
    """
    if moments.n == 0:
        raise ValueError("no rows to fit a Procrustes map on")
    d, e = moments.dims
    zero_x, zero_y = torch.zeros_like(moments.shift_x), torch.zeros_like(moments.shift_y)
    mean_x, mean_y = (moments.mean_x(), moments.mean_y()) if center else (zero_x, zero_y)
    cxx, cxy = moments.cov_xx(mean_x), moments.cov_xy(mean_x, mean_y)
    rotation = _polar(cxy)
    s = _best_scale(rotation, cxx, cxy) if scale else cxy.new_ones(())
    if d > e:
        slack = torch.linalg.eigvalsh(cxx)[-1] * torch.eye(d).to(cxx) - cxx
        error = _error(rotation, s, cxx, cxy)
        for _ in range(max_iterations):
            rotation = _polar(s * cxy + s * s * (slack @ rotation))
            s = _best_scale(rotation, cxx, cxy) if scale else s
            error, before = _error(rotation, s, cxx, cxy), error
            if before - error <= tolerance * cxx.trace():
                break
    return ProcrustesMap(rotation, s, mean_x, mean_y)


def _polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def _best_scale(rotation: Tensor, cxx: Tensor, cxy: Tensor) -> Tensor:
    spread = ((cxx @ rotation) * rotation).sum()
    return (rotation * cxy).sum() / spread if spread > 0 else cxy.new_ones(())


def _error(rotation: Tensor, s: Tensor, cxx: Tensor, cxy: Tensor) -> Tensor:
    """Mean squared error less the constant tr C_yy."""
    return s * s * ((cxx @ rotation) * rotation).sum() - 2 * s * (rotation * cxy).sum()
