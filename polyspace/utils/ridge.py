"""Ridge regression for a whole path of penalties from one eigendecomposition, chosen by held-out error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.utils.moments import Moments

# Penalties relative to the mean eigenvalue of C_xx, wide enough for n from tens to millions.
PENALTIES = tuple(10.0**k for k in (-6, -5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2))


@dataclass(frozen=True)
class RidgeMap:
    """x (…,d) -> x·weight + bias (…,e); `penalty` is relative to the mean eigenvalue of C_xx."""

    weight: Float[Tensor, "d e"]
    bias: Float[Tensor, " e"]
    penalty: float

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        return x @ self.weight.to(x) + self.bias.to(x)


def fit_ridge(fit: Moments, held_out: Moments | None = None, penalties: tuple[float, ...] = PENALTIES) -> RidgeMap:
    """W(λ) = V(Λ + λ)⁻¹Vᵀ C_xy about the fit part's means; λ minimises the held-out squared error.

    Without a held-out part the first of `penalties` is used.
    """
    mean_x, mean_y = fit.mean_x(), fit.mean_y()
    values, vectors = torch.linalg.eigh(fit.cov_xx())
    values = values.clamp_min(0)
    unit = values.mean().clamp_min(torch.finfo(values.dtype).tiny)
    projected = vectors.T @ fit.cov_xy()
    best = penalties[0]
    if held_out is not None and held_out.n:
        inner = vectors.T @ held_out.cov_xx(mean_x) @ vectors
        cross = (projected * (vectors.T @ held_out.cov_xy(mean_x, mean_y))).sum(1)
        gram = inner * (projected @ projected.T)
        errors = [(s @ gram @ s - 2 * s @ cross).item() for s in (1 / (values + p * unit) for p in penalties)]
        best = penalties[min(range(len(errors)), key=errors.__getitem__)]
    weight = vectors @ (projected / (values + best * unit)[:, None])
    return RidgeMap(weight, mean_y - mean_x @ weight, best)


def r2_from_moments(weight: Tensor, bias: Tensor, moments: Moments, baseline: Tensor | None = None) -> float:
    """1 − Σ‖xW + b − y‖² / Σ‖y − c‖², c = `baseline` (the mean predictor's constant) or the set's own mean."""
    mean_x, mean_y = moments.mean_x(), moments.mean_y()
    offset = mean_x @ weight + bias - mean_y
    cxx, cxy, cyy = moments.cov_xx(), moments.cov_xy(), moments.cov_yy()
    error = ((cxx @ weight) * weight).sum() - 2 * (weight * cxy).sum() + cyy.trace() + offset @ offset
    total = cyy.trace() if baseline is None else cyy.trace() + (mean_y - baseline).square().sum()
    return (1 - error / total).item() if total > 0 else 0.0
