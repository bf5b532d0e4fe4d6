"""Converters T_i from the student's space to a teacher's: closed forms from streamed moments, and a residual MLP."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict

from polyspace.utils.checkpoint_io import load_versioned, save_torch
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.moments import Moments
from polyspace.utils.procrustes import procrustes_from_moments
from polyspace.utils.reading import FAULTS, brief, check_form
from polyspace.utils.ridge import fit_ridge
from polyspace.utils.standardise import Standardiser

FORMAT, VERSION = "polyspace.converters", 2  # 2: residual MLPs beside linear maps


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


class ResidualMLP(nn.Module):
    """x (…,d) -> linear(x) + MLP((x − μ)/σ)·back (…,e): a frozen linear map and what a small network adds to it.

    The MLP speaks the teacher's standardised space, `back` takes its word to the teacher's own. Its last layer starts
    at zero, so an untrained one equals the linear map bit for bit.
    """

    mean: Tensor
    std: Tensor
    back: Tensor

    def __init__(
        self,
        linear: LinearConverter,
        hidden: int,
        mean: Float[Tensor, " d"],
        std: Float[Tensor, " d"],
        standardiser: Standardiser,
    ) -> None:
        super().__init__()
        self.linear = linear
        d, e = linear.weight.shape
        self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, e))
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.clamp_min(1e-3 * std.mean()).clamp_min(1e-12).float())
        self.register_buffer("back", standardiser.back.float())

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B e"]:
        return self.linear(x) + self.mlp((x - self.mean) / self.std) @ self.back


Converter = LinearConverter | ResidualMLP


def dims_of(converter: Converter) -> tuple[int, int]:
    """(d, e)."""
    linear = converter.linear if isinstance(converter, ResidualMLP) else converter
    return linear.weight.shape[0], linear.weight.shape[1]


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
    """A closed form by name."""
    if kind not in CONVERTERS:
        raise UserError(f"--kind {kind} is unknown{did_you_mean(kind, CONVERTERS)}")
    return CONVERTERS[kind](fit, held_out)


class ConverterBank(nn.Module):
    """One converter per teacher, all from the same student: x (…,d) -> {teacher: (…,e)}."""

    def __init__(self, converters: Mapping[str, Converter]) -> None:
        super().__init__()
        self.converters = nn.ModuleDict(converters)

    def forward(self, x: Float[Tensor, "*B d"]) -> dict[str, Tensor]:
        return {name: converter(x) for name, converter in self.converters.items()}

    def __getitem__(self, name: str) -> Converter:
        found = self.converters[name]
        assert isinstance(found, Converter)
        return found

    @property
    def dims(self) -> dict[str, int]:
        return {name: dims_of(self[name])[1] for name in self.converters}


def save_converters(path: Path, bank: ConverterBank, about: Mapping[str, Any]) -> None:
    """One file: weights and everything that says what they were fitted on, of the form `About`."""
    save_torch(path, {"format": FORMAT, "format_version": VERSION, "state": bank.state_dict(), **about})


class About(TypedDict):
    """What stands in every file of converters; further keys are for people."""

    state: dict[str, Any]
    student: str
    spaces: dict[str, dict[str, Any]]
    kind: str
    held_out: dict[str, Any]


def load_converters(path: Path) -> tuple[ConverterBank, dict[str, Any]]:
    """The bank and what stands beside it in the file; UserError for a file of another kind or version. Files of
    version 1 hold linear maps only and load as they are."""
    about = load_versioned(path, FORMAT, VERSION, "converters file", also=(1,))
    check_form(about, About, path, "converters file")
    return bank_from_state(about.pop("state"), str(path)), about


def bank_from_state(state: Mapping[str, Tensor], where: str, order: Sequence[str] | None = None) -> ConverterBank:
    """The frozen bank whose state dict this is: names of tensors and their shapes tell all but, where the file forgot
    it, the `order` of the spaces."""
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        for key, value in state.items():
            _, name, rest = key.split(".", 2)
            parts.setdefault(name, {})[rest] = value
        if order is not None and sorted(order) != sorted(parts):
            raise ValueError(f"spaces {sorted(parts)}, expected {sorted(order)}")
        bank = ConverterBank({name: _rebuilt(parts[name]) for name in order or parts})
    except FAULTS as error:
        raise UserError(f"{where} lacks a part of a converter ({brief(error)})") from error
    return bank.eval().requires_grad_(False)


def _rebuilt(part: dict[str, Tensor]) -> Converter:
    """A converter from its tensors, which tell its kind and shape."""
    if "mlp.0.weight" not in part:
        return LinearConverter(part["weight"], part["bias"])
    linear = LinearConverter(part["linear.weight"], part["linear.bias"])
    back, mean = part["back"], part["mean"]
    unit = Standardiser(back.new_zeros(len(back)), back, back)  # only `back` is kept
    made = ResidualMLP(linear, len(part["mlp.0.weight"]), mean, part["std"], unit)
    made.load_state_dict(part)
    return made
