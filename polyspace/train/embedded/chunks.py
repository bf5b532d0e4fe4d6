"""H-Net V-JEPA for the demo: encoder and objective as main.py has them, on the small backbones' clips."""

from pathlib import Path
from typing import Any

import torch

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
from polyspace.train.vjepa.watch import Watch
from polyspace.utils.plan import Plan

STEPS = 8000
MASKS = 16  # by which skill is measured
TAKEN = 16  # frames a clip, two a cell
RECIPE: dict[str, Any] = {"arch": "hnet", "preset": "tiny"} | PRESETS["tiny"]
# on 3×3 cells still ground is nearly all that targets say, and whether the object is there is rarer than not
OBJECTIVE: dict[str, Any] = {"steps": STEPS, "energy": "l2", "still": 0.5}


class ChunkPhase(Phase):
    """pretrain's own phase with its defaults, but for `OBJECTIVE` and what else is given."""

    held_out: VideoBatch

    def __init__(self, seed: int = 0, **objective: Any) -> None:
        super().__init__()
        self.name = "hnet_vjepa"
        self.jepa = build_phase(make_encoder(RECIPE), PretrainConfig(**(OBJECTIVE | objective)), seed)
        middle, spread = (0.45,) * 3, (0.25,) * 3
        self.plan = Plan(TAKEN, SIDE, (SIDE, SIDE), middle, spread, source="trained on such clips")

    def forward(self, batch: VideoBatch) -> StepOutput:
        return self.jepa(batch)

    def after_update(self, step: int) -> None:
        self.jepa.after_update(step)

    def frames(self, generator: torch.Generator) -> list[int]:
        """A random window at a random rate, up to the whole clip: what is slow can be foreseen first."""
        most = FRAMES / TAKEN
        stride = 1 + (most - 1) * torch.rand((), generator=generator).item() ** 2
        return stride_indices(FRAMES, TAKEN, stride, generator=generator)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Skill (1 − energy / energy of the best constant of each cell), mean chunks, and probes."""
        assert self.held_out.video is not None and self.held_out.features is not None
        seen = [self.jepa.target.model.encode(part) for part in self.held_out.video.split(CHUNK)]
        chunks = torch.cat([s.valid.sum(1) for s in seen]).float().mean().item()
        turns = self.held_out.features["turns"]
        scores = {"skill": self.skill(), "chunks": chunks}
        return scores | turn_scores(torch.cat([s.pooled() for s in seen]), turns)

    def skill(self) -> float:
        """Over some masks, all asked cells alike, of the first held-out clips."""
        assert self.held_out.video is not None
        watching, self.jepa.watch = self.jepa.watch, Watch(1, self.jepa.settings.energy)
        behind = self.jepa.settings.total_steps  # from here on cells weigh alike
        batches = (VideoBatch(video=self.held_out.video[:CHUNK], place=(behind + n, 0)) for n in range(MASKS))
        found = [self.jepa(batch).metrics["skill"].item() for batch in batches]
        self.jepa.watch = watching
        return sum(found) / len(found)

    def save(self, folder: Path) -> None:
        """encoder.json and encoder.safetensors, as the pretraining phase writes them."""
        taken = {"frames": TAKEN, "size": SIDE, "mean": list(self.plan.mean), "std": list(self.plan.std)}
        folder.mkdir(parents=True, exist_ok=True)
        save_encoder(folder, self.jepa.target.model, RECIPE, {"dataset": "generated"}, taken)
