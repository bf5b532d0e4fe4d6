"""What the loop trains: a phase is one module with everything it trains and everything frozen beside it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from polyspace.data.batch import VideoBatch


@dataclass(frozen=True)
class StepOutput:
    """The scalar to minimise, and scalars to log (detached tensors, read on log steps only)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Phase(nn.Module):
    """`forward(batch) -> StepOutput` is the whole step, so that wrapping a phase is one line in any engine."""

    def forward(self, batch: VideoBatch) -> StepOutput:
        raise NotImplementedError

    def after_update(self, step: int) -> None:
        """Called after every update that was made, with its number (0 … steps − 1), e.g. for a moving average."""

    def evaluate(self, step: int) -> dict[str, Any]:
        """Called every `eval_every` updates in eval mode without gradients; returns numbers to log."""
        return {}

    def alarm(self, metrics: dict[str, Any]) -> str | None:
        """A sentence when logged metrics say that the run has gone wrong; shown as a warning."""
        return None
