"""Fusion heads side by side: the head itself, its student-only control, and fusions of spaces that mean nothing."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyspace.data.batch import VideoBatch
from polyspace.models.spaces.converters import ConverterBank, LinearConverter, fit_converter
from polyspace.models.spaces.fusion import FusionHead, StudentHead, matched_pair
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.metrics import bootstrap_interval, top_k_hits
from polyspace.utils.moments import Moments

LABELS = {
    "fusion": "fusion",
    "student": "student only",
    "shuffled": "fusion of shuffled teachers",
    "random": "fusion of random maps",
}


def control_banks(
    bank: ConverterBank, x: Tensor, teachers: Mapping[str, Tensor], held: Tensor, seed: int
) -> dict[str, ConverterBank]:
    """Two banks of the same widths that no teacher speaks through. `shuffled`: ridge to teacher rows in random order,
    so spaces with the teacher's mean and nothing of the clip. `random`: a fixed Gaussian map of the student's
    feature for each space, all that width alone can give."""
    generator = torch.Generator().manual_seed(seed)
    shuffled, random = {}, {}
    for name, width in bank.dims.items():
        y = teachers[name][torch.randperm(len(x), generator=generator)]
        parts = (Moments().update(x[part], y[part]) for part in (~held, held))
        shuffled[name] = fit_converter("ridge", *parts)[0]
        weight = torch.randn(x.shape[1], width, generator=generator) / x.shape[1] ** 0.5
        random[name] = LinearConverter(weight, torch.zeros(width))
    return {"shuffled": ConverterBank(shuffled), "random": ConverterBank(random)}


@dataclass(frozen=True)
class HeadShape:
    """Widths of the student and of each space, of the fused representation, and the number of classes."""

    student: int
    spaces: dict[str, int]
    hidden: int
    classes: int


class HeadSet(nn.Module):
    """Heads by name, each with the bank it reads (the student-only head reads none): x (B,D) -> {name: (B,K)}.

    All fusion heads start from one and the same state.
    """

    def __init__(self, shape: HeadShape, banks: Mapping[str, ConverterBank]) -> None:
        super().__init__()
        fusion, control = matched_pair(shape.student, shape.spaces, shape.hidden, shape.classes)
        others = {name: copy.deepcopy(fusion) for name in banks if name != "fusion"}
        self.heads = nn.ModuleDict({"fusion": fusion, "student": control, **others})
        self.banks = nn.ModuleDict(banks).requires_grad_(False)

    @torch.no_grad()
    def fit_inputs(self, x: Tensor) -> None:
        """Statistics of the training part; features need no label for them."""
        for name, head in self.heads.items():
            if isinstance(head, FusionHead):
                head.fit_inputs(x, self.banks[name](x))
            elif isinstance(head, StudentHead):
                head.input.fit(x)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            name: head(x, self.banks[name](x)) if name in self.banks else head(x) for name, head in self.heads.items()
        }

    @property
    def bank(self) -> ConverterBank:
        """The true converters."""
        found = self.banks["fusion"]
        assert isinstance(found, ConverterBank)
        return found

    def control_maps(self) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
        """The controls' linear maps (weight, bias), to be stored beside their heads."""
        out: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        for name, bank in self.banks.items():
            if name != "fusion" and isinstance(bank, ConverterBank):
                maps = ((space, bank[space]) for space in bank.dims)
                out[name] = {space: (c.weight, c.bias) for space, c in maps if isinstance(c, LinearConverter)}
        return out

    @property
    def fusion(self) -> FusionHead:
        found = self.heads["fusion"]
        assert isinstance(found, FusionHead)
        return found


class FusionPhase(Phase):
    """All heads on the same batches; their losses add up and share no parameter. Best epochs live in buffers."""

    best: Tensor

    def __init__(self, heads: HeadSet, held_out: VideoBatch) -> None:
        super().__init__()
        self.set, self.best_set = heads, copy.deepcopy(heads).requires_grad_(False)
        self.register_buffer("best", torch.full((len(heads.heads), 2), -math.inf, dtype=torch.float64))  # score, step
        self._held_out = held_out

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.features is not None and batch.label is not None
        x = batch.features["student"]
        losses = {name: F.cross_entropy(z, batch.label) for name, z in self.set(x).items()}
        metrics = {f"loss_{name}": value.detach() for name, value in losses.items()}
        opened = self.set.fusion.gates(x).detach().mean(0)
        metrics |= {f"gate_{name}": gate for name, gate in zip(self.set.fusion.projections, opened, strict=True)}
        return StepOutput(torch.stack(list(losses.values())).sum(), metrics)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Held-out accuracy of every head; a head is kept when it is more accurate, or as accurate at less loss."""
        scores = self.scores(self.set)
        for row, (name, head) in enumerate(self.set.heads.items()):
            score = scores[f"held_out_top1_{name}"] - 1e-4 * min(scores[f"held_out_loss_{name}"], 100.0)
            if score > self.best[row, 0]:
                self.best[row] = torch.tensor([score, float(step)], dtype=torch.float64)
                self.best_set.heads[name].load_state_dict(head.state_dict())
        return scores

    @torch.no_grad()
    def scores(self, heads: HeadSet) -> dict[str, float]:
        """Held-out accuracy and loss of a set's heads."""
        batch = self._held_out.to(self.best.device)
        assert batch.features is not None and batch.label is not None
        out = {}
        for name, logits in heads(batch.features["student"]).items():
            out[f"held_out_top1_{name}"] = (logits.argmax(1) == batch.label).double().mean().item()
            out[f"held_out_loss_{name}"] = F.cross_entropy(logits.double(), batch.label).item()
        return out

    def best_steps(self) -> dict[str, int]:
        return {name: int(self.best[row, 1].item()) for row, name in enumerate(self.set.heads)}

    @torch.no_grad()
    def gates(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation over the held-out clips of each space's gate in the kept fusion head."""
        assert self._held_out.features is not None
        opened = self.best_set.fusion.gates(self._held_out.features["student"])
        spread = opened.std(0, correction=0)
        names = self.best_set.fusion.projections
        return {name: (float(opened[:, i].mean()), float(spread[i])) for i, name in enumerate(names)}

    @torch.no_grad()
    def choice(self) -> dict[str, Any]:
        """Which head to use: fusion only where a bootstrap over held-out clips shows it to be above its control."""
        batch = self._held_out
        assert batch.features is not None and batch.label is not None
        logits = self.best_set(batch.features["student"])
        gain = top_k_hits(logits["fusion"], batch.label, 1) - top_k_hits(logits["student"], batch.label, 1)
        low, high = bootstrap_interval(gain)
        return {"head": "fusion" if low > 0 else "student only", "top1": gain.mean().item(), "ci": [low, high]}
