"""Training of residual converters: their losses in the teachers' standardised spaces, the best epoch kept."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.losses import (
    barlow_twins_loss,
    cosine_loss,
    info_nce_loss,
    l2_loss,
    smooth_l1_loss,
    vicreg_loss,
)
from polyspace.models.spaces.converters import ConverterBank
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.metrics import r2_score
from polyspace.utils.standardise import Standardiser

Pairs = Mapping[str, tuple[Tensor, Tensor]]  # teacher -> (student rows, teacher rows)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": l2_loss,
    "smooth_l1": smooth_l1_loss,
    "cosine": cosine_loss,
    "info_nce": info_nce_loss,
    "vicreg": vicreg_loss,
    "barlow": barlow_twins_loss,
}


def parse_losses(text: str) -> dict[str, float]:
    """`l2=1,cosine=0.5` or plain names -> {name: weight}."""
    out: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = item.partition("=")
        if name not in LOSSES:
            raise UserError(f"--loss {item}: no such loss{did_you_mean(name, LOSSES)}")
        try:
            out[name] = float(value) if sign else 1.0
        except ValueError as error:
            raise UserError(f"--loss {item}: expected NAME=WEIGHT") from error
        if not 0 < out[name] < float("inf"):
            raise UserError(f"--loss {item}: the weight must be above 0")
    if not out:
        raise UserError("--loss names no loss")
    return out


class PairRows:
    """Rows of every teacher's pairs in memory, batches by index: features `teacher/x` and `teacher/y`."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = dict(pairs)

    def __len__(self) -> int:
        return min(len(x) for x, _ in self.pairs.values())

    def batch(self, indices: Tensor) -> VideoBatch:
        features = {}
        for name, (x, y) in self.pairs.items():
            features |= {f"{name}/x": x[indices], f"{name}/y": y[indices]}
        return VideoBatch(features=features)


class ConverterPhase(Phase):
    """Every converter on its own teacher's rows. loss = Σ_teachers Σ_losses weight · loss(W(T(x) − μ), W(y − μ)).

    With `drop` > 0 each step leaves out every teacher but the worst with that probability (teacher dropping, UNIC,
    arXiv 2408.05088): converters share nothing, so this only sets how often each is trained. Buffers hold each
    teacher's best state by held-out R²; the start, which is the linear map, counts as one.
    """

    best: Tensor

    def __init__(
        self,
        bank: ConverterBank,
        standardisers: Mapping[str, Standardiser],
        losses: Mapping[str, float],
        held_out: Pairs,
        baselines: Mapping[str, Tensor],
        drop: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.bank, self.best_bank = bank, copy.deepcopy(bank).requires_grad_(False)
        self.losses, self.drop, self.seed = dict(losses), drop, seed
        self.standard = {
            n: Standardiser(s.mean.float(), s.into.float(), s.back.float()) for n, s in standardisers.items()
        }
        self._held_out, self._baselines = dict(held_out), dict(baselines)
        self.register_buffer("best", torch.zeros(len(held_out), 2, dtype=torch.float64))  # per teacher: R², step
        for row, name in enumerate(self._held_out):
            self.best[row, 0] = self._r2(name)

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.features is not None
        each = {}
        for name, standard in self.standard.items():
            guess, true = (
                standard(z) for z in (self.bank[name](batch.features[f"{name}/x"]), batch.features[f"{name}/y"])
            )
            each[name] = torch.stack([w * LOSSES[loss](guess, true) for loss, w in self.losses.items()]).sum()
        total = torch.stack(list(each.values()))
        kept = self._kept(total.detach(), batch.place[0])
        return StepOutput((total * kept).sum(), {f"loss_{name}": value.detach() for name, value in each.items()})

    def _kept(self, losses: Tensor, step: int) -> Tensor:
        """1 for teachers that count at this step, 0 for dropped ones; the worst is never dropped."""
        if not self.drop:
            return torch.ones_like(losses)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        kept = (torch.rand(len(losses), generator=generator) >= self.drop).to(losses)
        kept[losses.argmax()] = 1
        return kept

    def _r2(self, name: str) -> float:
        x, y = self._held_out[name]
        with torch.no_grad():
            guess = torch.cat([self.bank[name](part.to(self.best.device)).cpu() for part in x.split(4096)])
        return r2_score(guess, y, self._baselines[name])

    def evaluate(self, step: int) -> dict[str, Any]:
        """Held-out R² of each teacher; a converter that is better than before is kept."""
        out = {}
        for row, name in enumerate(self._held_out):
            out[f"held_out_r2_{name}"] = score = self._r2(name)
            if score > self.best[row, 0]:
                self.best[row] = torch.tensor([score, float(step)], dtype=torch.float64)
                self.best_bank[name].load_state_dict(self.bank[name].state_dict())
        return out

    def best_steps(self) -> dict[str, int]:
        """Updates after which each teacher's kept state was reached; 0 is the linear map."""
        return {name: int(self.best[row, 1].item()) for row, name in enumerate(self._held_out)}
