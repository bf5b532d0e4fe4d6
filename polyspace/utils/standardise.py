"""Invertible affine maps that give every dimension of a space unit variance, so that no space and no dimension drowns
the others in a loss: per dimension, or PHI-S (arXiv 2410.01680, section 3.2), which also keeps relations between them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["none", "per_dim", "phi_s"]
FLOOR = 1e-3  # of the mean standard deviation: dimensions below it count as if they had it (DUNE's floor)


@dataclass(frozen=True)
class Standardiser:
    """y -> (y − mean) · into, and back; rows are features. `into` and `back` are each other's inverse."""

    mean: Float[Tensor, " D"]
    into: Float[Tensor, "D D"]
    back: Float[Tensor, "D D"]

    def __call__(self, y: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return (y - self.mean.to(y)) @ self.into.to(y)

    def inverse(self, z: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return z @ self.back.to(z) + self.mean.to(z)


def fit_standardiser(mean: Float[Tensor, " D"], cov: Float[Tensor, "D D"], kind: Kind) -> Standardiser:
    """From a space's mean and covariance, in float64.

    `per_dim` divides each dimension by its own standard deviation. `phi_s` rotates to axes of equal variance and
    divides by one number, the root of the mean eigenvalue: W = H·Uᵀ/√λ̄ with Σ = UΛUᵀ, H a normalised Hadamard matrix,
    or where none is known at this width another rotation to equal variances. A constant space is only centred.
    """
    d = len(mean)
    one = torch.eye(d, dtype=cov.dtype, device=cov.device)
    level = cov.trace() / d
    if kind == "none" or level <= 0:
        return Standardiser(mean, one, one)
    if kind == "per_dim":
        std = cov.diagonal().clamp_min(0).sqrt().clamp_min(FLOOR * level.sqrt())
        return Standardiser(mean, (1 / std).diag(), std.diag())
    values, vectors = torch.linalg.eigh(cov)
    h = hadamard(d)
    turned = even_rotation(values) if h is None else h.to(cov) / d**0.5
    rotation = turned @ vectors.T  # rows are the new axes
    return Standardiser(mean, rotation.T / level.sqrt(), rotation * level.sqrt())


def hadamard(order: int) -> Tensor | None:
    """A ±1 matrix with orthogonal rows, from Sylvester's doubling and Paley's constructions; None where these give
    none (768 = 64·12 and 1408 = 32·44 are there)."""
    doublings = 0
    while True:
        base = _paley(order >> doublings)
        if base is not None:
            break
        if (order >> doublings) % 2:
            return None
        doublings += 1
    for _ in range(doublings):
        base = torch.cat([torch.cat([base, base], 1), torch.cat([base, -base], 1)])
    return base


def _paley(order: int) -> Tensor | None:
    """Orders 1, 2, q + 1 (q a prime, 3 mod 4) and 2(q + 1) (q a prime, 1 mod 4)."""
    if order in (1, 2):
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]])[:order, :order].double()
    q = order - 1
    if q % 4 == 3 and _is_prime(q):
        skew = torch.zeros(order, order, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0] = 1, -1
        skew[1:, 1:] = _jacobsthal(q)
        return skew + torch.eye(order, dtype=torch.float64)
    q = order // 2 - 1
    if order % 4 == 0 and q % 4 == 1 and _is_prime(q):
        conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
        conference[0, 1:] = conference[1:, 0] = 1
        conference[1:, 1:] = _jacobsthal(q)
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(conference, plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), minus)
    return None


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, int(n**0.5) + 1))


def _jacobsthal(q: int) -> Tensor:
    """χ(i − j) over the residues mod a prime: 1 for squares, −1 for others, 0 on the diagonal."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[[k * k % q for k in range(1, q)]] = 1
    character[0] = 0
    place = torch.arange(q)
    return character[(place[:, None] - place) % q]


def even_rotation(values: Float[Tensor, " D"]) -> Float[Tensor, "D D"]:
    """A rotation R with equal variances: every diagonal entry of R·diag(values)·Rᵀ is the mean of `values`.

    One plane rotation after the other takes a diagonal entry below the mean and one above it and sets the first to the
    mean (Bendel and Mickey 1978): D − 1 of them.
    """
    d, mean = len(values), values.mean()
    rotation, a = torch.eye(d, dtype=values.dtype, device=values.device), values.diag()
    left = list(range(d))
    while len(left) > 1:
        diagonal = a.diagonal()[left]
        low, high = left[int(diagonal.argmin())], left[int(diagonal.argmax())]
        p, q, r = a[low, low] - mean, a[high, high] - mean, a[low, high]
        if q - p <= 1e-14 * mean.abs():
            break
        # tan t with p + 2 r t + q t² = 0: the new entry of `low` is the mean
        root = (r * r - p * q).clamp_min(0).sqrt()
        t = (-r + torch.where(r <= 0, root, -root)) / q if q > 0 else torch.zeros_like(p)
        c = (1 + t * t).rsqrt()
        s = c * t
        plane = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
        pair = [low, high]
        a[pair] = plane @ a[pair]
        a[:, pair] = a[:, pair] @ plane.T
        rotation[pair] = plane @ rotation[pair]
        left.remove(low)
    return rotation
