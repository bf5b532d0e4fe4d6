"""A short pretraining with all terms that look at several clips, on one rank or many: what test_engine.py compares."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from polyspace.data.batch import VideoBatch
from polyspace.data.clip_source import MemoryClips
from polyspace.data.moving import moving_clips
from polyspace.train.encoders import EncoderConfig, build_encoder
from polyspace.train.engine import Engine, Precision
from polyspace.train.loop import fit
from polyspace.train.machine import make_machine
from polyspace.train.pretrain import build_phase
from polyspace.train.settings import fit_settings
from polyspace.train.vjepa.pretrain_config import PretrainConfig
from polyspace.utils import distrib

ZERO = Path(__file__).parents[2] / "configs" / "deepspeed_zero2.json"
STEPS, BATCH = int(os.environ.get("POLYSPACE_TEST_STEPS", "6")), 8  # more: python tests/train/engine_cases.py
TERMS = {"context_weight": 0.1, "vicregl_weight": 0.01, "entropy_weight": 0.01, "boundary_weight": 0.01}


class Poisoned:
    """The clips, but that the last rank finds no number in those of the second update."""

    def __init__(self, clips: MemoryClips) -> None:
        self.clips, self.asked = clips, 0

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, rows: torch.Tensor) -> VideoBatch:
        self.asked += 1
        batch = self.clips.batch(rows)
        bad = self.asked in (3, 4) and distrib.rank() == distrib.world_size() - 1
        return replace(batch, video=batch.video * float("nan")) if bad else batch


def train(kind: str, folder: Path, context: int = 1, precision: Precision = "fp64") -> Engine:
    """Updates of two micro-batches; checkpoints half-way and at the end. `kind` plain or as `--engine`. The clips of a
    folder named poisoned… are."""
    machine = make_machine(
        "cpu", "auto" if kind == "plain" else kind, precision, context, ZERO if kind == "deepspeed" else None
    )
    torch.manual_seed(0)
    clips: MemoryClips | Poisoned = MemoryClips(moving_clips(24, 0, frames=8, size=32).video)
    clips = Poisoned(clips) if folder.name.startswith("poisoned") else clips
    config = PretrainConfig(
        steps=STEPS, batch=BATCH, accumulate=2, lr=1e-3, save_every=STEPS // 2, log_every=1,
        predictor_width=32, future_share=0.5, budgets=(0.3, 0.8), **TERMS,
    )  # fmt: skip
    phase = build_phase(build_encoder(EncoderConfig(dim=32, depth=2, heads=2)), config, 0)
    engine = machine.engine(phase, config)
    fit(engine, len(clips), clips.batch, fit_settings(config, 0), folder)
    return engine


def ranks(rank: int, world: int, port: int, runs: list[tuple[str, str, int, Precision]], out: str) -> None:
    """Each of `runs` (name, engine, ranks a context group, precision) in a process group of `world` ranks."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    distrib.initialize(120)
    for name, kind, context, precision in runs:
        engine = train(kind, Path(out) / name, context, precision)
        torch.save({key: p.detach() for key, p in engine.phase.named_parameters()}, f"{out}/{name}/rank_{rank}.pt")
    distrib.shutdown()
