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
    moments: Moments, *, center: bool = True, scale: bool = True, max_iterations: int = 300, tolerance: float = 1e-5
) -> ProcrustesMap:
    """The same from streamed statistics.

    For d ≤ e the thin SVD of C_xy = UΣVᵀ gives R = UVᵀ (Schönemann 1966). For d > e, ‖XR‖ depends on R and no closed
    form is known: it is iterated from UVᵀ until a step lowers the error by less than `tolerance` of tr C_yy.
    """
    if moments.n == 0:
        raise ValueError("no rows to fit a Procrustes map on")
    d, e = moments.dims
    zero_x, zero_y = torch.zeros_like(moments.shift_x), torch.zeros_like(moments.shift_y)
    mean_x, mean_y = (moments.mean_x(), moments.mean_y()) if center else (zero_x, zero_y)
    cxx, cxy = moments.cov_xx(mean_x), moments.cov_xy(mean_x, mean_y)
    rotation = _polar(cxy)
    if d > e:
        smallest_gain = tolerance * moments.cov_yy(mean_y).trace()
        rotation = _iterate(rotation, cxx, cxy, scale, max_iterations, smallest_gain)
    s = _best_scale(rotation, cxx, cxy) if scale else cxy.new_ones(())
    return ProcrustesMap(rotation, s, mean_x, mean_y)


def _iterate(rotation: Tensor, cxx: Tensor, cxy: Tensor, scale: bool, most: int, smallest_gain: Tensor) -> Tensor:
    """R ← polar(s·C_xy + s²(λ_max I − C_xx)Y) from the extrapolated point Y = R + β(R − R_before).

    At Y = R the step minimises a majoriser and can't raise the error; where an extrapolated step does, it is taken
    again from R (the restart of O'Donoghue and Candès 2015). β grows as in Nesterov's method.
    """
    slack = torch.linalg.eigvalsh(cxx)[-1] * torch.eye(len(cxx)).to(cxx) - cxx

    def step(start: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = _fast_polar(s * cxy + s * s * (slack @ start))
        s = _best_scale(moved, cxx, cxy) if scale else s
        return moved, s, _error(moved, s, cxx, cxy)

    s = _best_scale(rotation, cxx, cxy) if scale else cxy.new_ones(())
    before, error, run = rotation, _error(rotation, s, cxx, cxy), 0
    for _ in range(most):
        moved, new_s, new_error = step(rotation + run / (run + 3) * (rotation - before), s)
        run += 1
        if new_error > error:
            run = 0
            moved, new_s, new_error = step(rotation, s)
        gain = error - new_error
        before, rotation, s, error = rotation, moved, new_s, new_error
        if gain <= smallest_gain and run != 1:
            break
    return _polar(rotation)


def _fast_polar(matrix: Tensor) -> Tensor:
    """M(MᵀM)^(−1/2) for a tall matrix of full rank; half the time of the SVD, which has the last word."""
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    return (matrix @ (vectors * values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt())) @ vectors.T


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
