"""Converters T_i from the student's space to a teacher's, fitted from streamed moments."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.utils.checkpoint_io import load_versioned, save_torch
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.moments import Moments
from polyspace.utils.procrustes import procrustes_from_moments
from polyspace.utils.ridge import fit_ridge

FORMAT, VERSION = "polyspace.converters", 1


class LinearConverter(nn.Module):
    """x (B,d) -> x·weight + bias (B,e), frozen: `weight` (d,e) and `bias` (e,) are buffers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "d e"], bias: Float[Tensor, " e"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B e"]:
        return x @ self.weight + self.bias


def _ridge(fit: Moments, held_out: Moments) -> tuple[LinearConverter, dict[str, Any]]:
    ridge = fit_ridge(fit, held_out)
    return LinearConverter(ridge.weight, ridge.bias), {"penalty": ridge.penalty}


def _procrustes(fit: Moments, held_out: Moments) -> tuple[LinearConverter, dict[str, Any]]:
    found = procrustes_from_moments(fit)
    return LinearConverter(*found.affine()), {"scale": found.scale.item()}


def _mean(fit: Moments, held_out: Moments) -> tuple[LinearConverter, dict[str, Any]]:
    """The control that every R² is measured against: the training mean, whatever the input."""
    return LinearConverter(torch.zeros(fit.dims), fit.mean_y()), {}


# kind -> fit(moments of the fitting part, moments of the held-out part) -> converter and what was chosen
CONVERTERS: dict[str, Callable[[Moments, Moments], tuple[LinearConverter, dict[str, Any]]]] = {
    "ridge": _ridge,
    "procrustes": _procrustes,
    "mean": _mean,
}


def fit_converter(kind: str, fit: Moments, held_out: Moments) -> tuple[LinearConverter, dict[str, Any]]:
    if kind not in CONVERTERS:
        raise UserError(f"--kind {kind} is unknown{did_you_mean(kind, CONVERTERS)}")
    return CONVERTERS[kind](fit, held_out)


class ConverterBank(nn.Module):
    """One converter per teacher, all from the same student: x (B,d) -> {teacher: (B,e)}."""

    def __init__(self, converters: Mapping[str, LinearConverter]) -> None:
        super().__init__()
        self.converters = nn.ModuleDict(converters)

    def forward(self, x: Float[Tensor, "B d"]) -> dict[str, Tensor]:
        return {name: converter(x) for name, converter in self.converters.items()}

    @property
    def dims(self) -> dict[str, int]:
        return {n: c.weight.shape[1] for n, c in self.converters.items() if isinstance(c, LinearConverter)}


def save_converters(path: Path, bank: ConverterBank, about: Mapping[str, Any]) -> None:
    """One file: weights and everything that says what they were fitted on."""
    save_torch(path, {"format": FORMAT, "format_version": VERSION, "state": bank.state_dict(), **about})


def load_converters(path: Path) -> tuple[ConverterBank, dict[str, Any]]:
    """The bank and what stands beside it in the file; UserError for a file of another kind or version."""
    about = load_versioned(path, FORMAT, VERSION, "converters file")
    state: dict[str, Tensor] = about.pop("state")
    names = [k.removeprefix("converters.").removesuffix(".weight") for k in state if k.endswith(".weight")]
    pairs = {n: (state[f"converters.{n}.weight"], state[f"converters.{n}.bias"]) for n in names}
    return ConverterBank({n: LinearConverter(*pair) for n, pair in pairs.items()}).eval(), about
