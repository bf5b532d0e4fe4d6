"""H-Net V-JEPA for the demo: encoder and objective as main.py has them, on the small backbones' clips."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.data.sampling import stride_indices
from polyspace.models.vjepa.saved import make_encoder, save_encoder
from polyspace.models.vjepa.vit import PRESETS
from polyspace.train.embedded.clips import FRAMES, SIDE
from polyspace.train.embedded.phases import CHUNK
from polyspace.train.embedded.scores import turn_scores
from polyspace.train.phase import Phase, StepOutput
from polyspace.train.pretrain import build_phase
from polyspace.train.vjepa.pretrain_config import PretrainConfig
from polyspace.utils.plan import Plan

TAKEN = 36  # frames: all of a clip but its last, two a cell
RECIPE: dict[str, Any] = {"arch": "hnet", "preset": "tiny"} | PRESETS["tiny"]


class ChunkPhase(Phase):
    """pretrain's own phase with its defaults, but for what `objective` says."""

    held_out: VideoBatch

    def __init__(self, seed: int = 0, encoder: dict[str, Any] | None = None, **objective: Any) -> None:
        super().__init__()
        self.name, self.recipe = "hnet_vjepa", RECIPE | (encoder or {})
        self.jepa = build_phase(make_encoder(self.recipe), PretrainConfig(**objective), seed)
        middle, spread = (0.45,) * 3, (0.25,) * 3
        self.plan = Plan(TAKEN, SIDE, (SIDE, SIDE), middle, spread, source="trained on such clips")

    def forward(self, batch: VideoBatch) -> StepOutput:
        return self.jepa(batch)

    def after_update(self, step: int) -> None:
        self.jepa.after_update(step)

    def frames(self, generator: torch.Generator) -> list[int]:
        """A random window."""
        return stride_indices(FRAMES, TAKEN, 1.0, generator=generator)

    def evaluate(self, step: int) -> dict[str, Any]:
        assert self.held_out.video is not None and self.held_out.features is not None
        seen = [self.jepa.target.model.encode(part) for part in self.held_out.video.split(CHUNK)]
        chunks = torch.cat([s.valid.sum(1) for s in seen]).float().mean().item()
        return {"chunks": chunks} | turn_scores(torch.cat([s.pooled() for s in seen]), self.held_out.features["turns"])

    def save(self, folder: Path) -> None:
        """encoder.json and encoder.safetensors, as the pretraining phase writes them."""
        taken = {"frames": TAKEN, "size": SIDE, "mean": list(self.plan.mean), "std": list(self.plan.std)}
        save_encoder(folder, self.jepa.target.model, self.recipe, {"dataset": "generated"}, taken)
