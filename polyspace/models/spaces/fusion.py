"""Heads on the student's feature: residual-gated fusion of translated spaces, and its parameter-matched control."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x − mean)/std with statistics of the training part; dims that never vary pass as 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n D"]) -> "Standardise":
        self.mean.copy_(x.double().mean(0))
        std = x.double().std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6 * std.max().clamp_min(1e-30), std, torch.full_like(std, float("inf"))))
        return self

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (x - self.mean) / self.std


class FusionHead(nn.Module):
    """logits = C(gelu(S(x) + Σ_i g_i(x) · P_i(t_i))), x the student's feature, t_i its translations.

    g_i(x) = tanh(a_i + ⟨w_i, x⟩) is a clip's own gate for space i. a and w start at 0 and P_i do not (both at 0 would
    never move), so step 0 equals the student path alone.
    """

    def __init__(self, student_dim: int, space_dims: Mapping[str, int], hidden: int, classes: int) -> None:
        super().__init__()
        self.input = Standardise(student_dim)
        self.inputs = nn.ModuleDict({name: Standardise(dim) for name, dim in space_dims.items()})
        self.student = nn.Linear(student_dim, hidden)
        self.projections = nn.ModuleDict({name: nn.Linear(dim, hidden) for name, dim in space_dims.items()})
        self.gate = closed_gate(student_dim, len(space_dims))
        self.classifier = nn.Linear(hidden, classes)

    def fit_inputs(self, student: Float[Tensor, "n D"], translated: Mapping[str, Tensor]) -> None:
        """Take the statistics of the training part."""
        self.input.fit(student)
        for name, standardise in self.inputs.items():
            assert isinstance(standardise, Standardise)
            standardise.fit(translated[name])

    def gates(self, student: Float[Tensor, "B D"]) -> Float[Tensor, "B S"]:
        """Each clip's gates in −1 … 1, in the order of the spaces."""
        return self.gate(self.input(student)).tanh()

    def forward(self, student: Float[Tensor, "B D"], translated: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        hidden, gates = self.student(self.input(student)), self.gates(student)
        for i, (name, project) in enumerate(self.projections.items()):
            hidden = hidden + gates[:, i : i + 1] * project(self.inputs[name](translated[name]))
        return self.classifier(F.gelu(hidden))


def closed_gate(student_dim: int, gates: int) -> nn.Linear:
    """A linear map that starts at 0."""
    gate = nn.Linear(student_dim, gates)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


class StudentHead(nn.Module):
    """The control: the same student path, and a gated two-layer branch on the student's own feature whose width makes
    the number of trained parameters equal to the fusion head's (to within one unit of that width)."""

    def __init__(self, student_dim: int, hidden: int, classes: int, extra_params: int) -> None:
        super().__init__()
        width = max(1, round((extra_params - (student_dim + 1) - hidden) / (student_dim + hidden + 1)))
        self.input = Standardise(student_dim)
        self.student = nn.Linear(student_dim, hidden)
        self.branch = nn.Sequential(nn.Linear(student_dim, width), nn.GELU(), nn.Linear(width, hidden))
        self.gate = closed_gate(student_dim, 1)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, student: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        x = self.input(student)
        return self.classifier(F.gelu(self.student(x) + self.gate(x).tanh() * self.branch(x)))


def matched_pair(
    student_dim: int, space_dims: Mapping[str, int], hidden: int, classes: int
) -> tuple[FusionHead, StudentHead]:
    """A fusion head and its control; both begin with the same student path and classifier."""
    fusion = FusionHead(student_dim, space_dims, hidden, classes)
    extra = sum(p.numel() for part in (fusion.projections, fusion.gate) for p in part.parameters())
    control = StudentHead(student_dim, hidden, classes, extra)
    control.student.load_state_dict(fusion.student.state_dict())
    control.classifier.load_state_dict(fusion.classifier.state_dict())
    return fusion, control
