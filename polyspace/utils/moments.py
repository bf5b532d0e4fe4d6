"""Sufficient statistics of paired rows (x, y) in float64: one pass, any chunking, mergeable in any order.

From them come Procrustes, ridge, R² and the exact debiased CKA of the whole set, with memory that depends on the
widths only. Sums are taken after a fixed shift (the first chunk's mean): uncentred sums lose digits when the mean is
far from zero. Statistics with different shifts are merged by translating one of them, which is exact algebra.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class _Pair:
    """Sums over rows of two shifted variables u (n,p), v (n,q): ΣuvᵀT, Σ‖u‖²v, Σ‖v‖²u, Σ‖u‖²‖v‖²."""

    outer: Tensor
    sq_v: Tensor
    u_sq: Tensor
    quartic: Tensor

    @staticmethod
    def of(u: Tensor, v: Tensor) -> "_Pair":
        a, b = (u * u).sum(1), (v * v).sum(1)
        return _Pair(u.T @ v, a @ v, b @ u, a @ b)

    def add(self, other: "_Pair") -> None:
        self.outer += other.outer
        self.sq_v += other.sq_v
        self.u_sq += other.u_sq
        self.quartic += other.quartic

    def translated(self, n: int, d: Tensor, e: Tensor, su: Tensor, sv: Tensor, a: Tensor, b: Tensor) -> "_Pair":
        """The sums for u − d, v − e; su = Σu, sv = Σv, a = Σ‖u‖², b = Σ‖v‖² before the move."""
        dd, ee = d @ d, e @ e
        outer = self.outer - torch.outer(d, sv) - torch.outer(su, e) + n * torch.outer(d, e)
        sq_v = self.sq_v - a * e - 2 * self.outer.T @ d + 2 * (d @ su) * e + dd * (sv - n * e)
        u_sq = self.u_sq - b * d - 2 * self.outer @ e + 2 * (e @ sv) * d + ee * (su - n * d)
        quartic = (
            self.quartic
            - 2 * self.sq_v @ e
            + ee * a
            - 2 * self.u_sq @ d
            + 4 * d @ self.outer @ e
            - 2 * ee * (d @ su)
            + dd * (b - 2 * e @ sv + n * ee)
        )
        return _Pair(outer, sq_v, u_sq, quartic)


class Moments:
    """Running sums of pairs x (n,d), y (n,e).

    >>> m = Moments(); m.update(x1, y1); m.update(x2, y2); m.merge(other); m.cov_xy()
    """

    def __init__(self) -> None:
        self.n = 0

    @property
    def dims(self) -> tuple[int, int]:
        return self.shift_x.shape[0], self.shift_y.shape[0]

    def update(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> "Moments":
        """Add rows; any float dtype, any device."""
        if x.shape[0] != y.shape[0]:
            raise ValueError(f"pairs need equal row counts, got {x.shape[0]} and {y.shape[0]}")
        if x.shape[0] == 0:
            return self
        x, y = x.double(), y.double()
        if self.n == 0:
            self.shift_x, self.shift_y = x.mean(0), y.mean(0)
            self._start(x.shape[1], y.shape[1], x)
        if self.dims != (x.shape[1], y.shape[1]):
            raise ValueError(f"widths {(x.shape[1], y.shape[1])} do not fit the statistics' {self.dims}")
        x, y = x - self.shift_x, y - self.shift_y
        self.n += x.shape[0]
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.xx.add(_Pair.of(x, x))
        self.xy.add(_Pair.of(x, y))
        self.yy.add(_Pair.of(y, y))
        return self

    def _start(self, d: int, e: int, like: Tensor) -> None:
        def zero(p: int, q: int) -> _Pair:
            return _Pair(like.new_zeros(p, q), like.new_zeros(q), like.new_zeros(p), like.new_zeros(()))

        self.sum_x, self.sum_y = like.new_zeros(d), like.new_zeros(e)
        self.xx, self.xy, self.yy = zero(d, d), zero(d, e), zero(e, e)

    def merge(self, other: "Moments") -> "Moments":
        """Add another set's sums to this one's, whatever its shift."""
        if other.n == 0:
            return self
        if self.n == 0:
            self.shift_x, self.shift_y = other.shift_x, other.shift_y
            self._start(*other.dims, other.shift_x)
        if self.dims != other.dims:
            raise ValueError(f"widths {other.dims} do not fit the statistics' {self.dims}")
        d, e = self.shift_x - other.shift_x, self.shift_y - other.shift_y
        a, b = other.xx.outer.trace(), other.yy.outer.trace()
        n, sx, sy = other.n, other.sum_x, other.sum_y
        self.n += n
        self.sum_x += sx - n * d
        self.sum_y += sy - n * e
        self.xx.add(other.xx.translated(n, d, d, sx, sx, a, a))
        self.xy.add(other.xy.translated(n, d, e, sx, sy, a, b))
        self.yy.add(other.yy.translated(n, e, e, sy, sy, b, b))
        return self

    def state(self) -> dict[str, Any]:
        """All sums as plain tensors and a count, for `from_state`."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            flat |= {f"{name}.{k}": v for k, v in vars(value).items()} if isinstance(value, _Pair) else {name: value}
        return flat

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "Moments":
        out, pairs = Moments(), {}
        for name, value in state.items():
            whole, dot, part = name.partition(".")
            pairs.setdefault(whole, {}).update({part: value}) if dot else setattr(out, name, value)
        for name, parts in pairs.items():
            setattr(out, name, _Pair(**parts))
        return out

    def mean_x(self) -> Float[Tensor, " d"]:
        return self.shift_x + self.sum_x / self.n

    def mean_y(self) -> Float[Tensor, " e"]:
        return self.shift_y + self.sum_y / self.n

    def cov_xx(self, about: Tensor | None = None) -> Float[Tensor, "d d"]:
        """(1/n) Σ (x − c)(x − c)ᵀ with c = `about`, or the mean."""
        return _central(self.xx.outer, self.sum_x, self.sum_x, self.n, self._off_x(about), self._off_x(about))

    def cov_xy(self, about_x: Tensor | None = None, about_y: Tensor | None = None) -> Float[Tensor, "d e"]:
        return _central(self.xy.outer, self.sum_x, self.sum_y, self.n, self._off_x(about_x), self._off_y(about_y))

    def cov_yy(self, about: Tensor | None = None) -> Float[Tensor, "e e"]:
        return _central(self.yy.outer, self.sum_y, self.sum_y, self.n, self._off_y(about), self._off_y(about))

    def _off_x(self, about: Tensor | None) -> Tensor:
        return self.sum_x / self.n if about is None else about - self.shift_x

    def _off_y(self, about: Tensor | None) -> Tensor:
        return self.sum_y / self.n if about is None else about - self.shift_y

    def linear_cka(self, debiased: bool = True) -> float:
        """Linear CKA of all rows seen; debiased by the U-statistic of HSIC (Song et al. 2012, eq. 5).

        1 for equal spaces up to rotation, translation and scale; the debiased form is 0 in the mean for independent
        ones and needs n ≥ 4. 0 where a side is constant.
        """
        if debiased and self.n < 4:
            raise ValueError(f"debiased CKA needs at least 4 rows, got {self.n}")
        hsic = self._hsic_debiased if debiased else self._hsic_biased
        xy, xx, yy = hsic(self.xy), hsic(self.xx), hsic(self.yy)
        return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0

    def _sides(self, pair: _Pair) -> tuple[Tensor, Tensor, float, float]:
        """Σu, Σv, Σ‖u‖², Σ‖v‖² of one of the three pairs."""
        a, b = self.xx.outer.trace().item(), self.yy.outer.trace().item()
        if pair is self.xy:
            return self.sum_x, self.sum_y, a, b
        return (self.sum_x, self.sum_x, a, a) if pair is self.xx else (self.sum_y, self.sum_y, b, b)

    def _hsic_biased(self, pair: _Pair) -> float:
        su, sv, _, _ = self._sides(pair)
        return (pair.outer - torch.outer(su, sv) / self.n).square().sum().item()

    def _hsic_debiased(self, pair: _Pair) -> float:
        su, sv, a, b = self._sides(pair)
        n = self.n
        trace = (pair.outer.square().sum() - pair.quartic).item()
        total = (su @ su - a).item() * (sv @ sv - b).item() / ((n - 1) * (n - 2))
        middle = (su @ pair.outer @ sv - su @ pair.u_sq - sv @ pair.sq_v + pair.quartic).item()
        return (trace + total - 2 / (n - 2) * middle) / (n * (n - 3))


def _central(outer: Tensor, su: Tensor, sv: Tensor, n: int, du: Tensor, dv: Tensor) -> Tensor:
    """(1/n) Σ (u − du)(v − dv)ᵀ from the raw sums."""
    return outer / n - torch.outer(su / n, dv) - torch.outer(du, sv / n) + torch.outer(du, dv)
