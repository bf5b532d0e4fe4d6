"""A short pretraining with all terms that look at several clips, on one rank or many: what test_engine.py compares."""

import os
from pathlib import Path

import torch

from polyspace.data.clip_source import MemoryClips
from polyspace.data.moving import moving_clips
from polyspace.models.vjepa.predictor import share_tokens
from polyspace.train.encoders import EncoderConfig, build_encoder
from polyspace.train.engine import DDPEngine, PlainEngine, Precision, in_precision, whole
from polyspace.train.engine_fsdp import FSDPEngine, shard
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.pretrain import build_phase
from polyspace.train.vjepa.pretrain_config import PretrainConfig
from polyspace.utils import distrib
from polyspace.utils.world import make_world

ENGINES = {"plain": PlainEngine, "ddp": DDPEngine, "fsdp": FSDPEngine}
STEPS, BATCH = 6, 8
TERMS = {"context_weight": 0.1, "vicregl_weight": 0.01, "entropy_weight": 0.01, "boundary_weight": 0.01}


def train(kind: str, folder: Path, context: int = 1, precision: Precision = "fp64") -> PlainEngine:
    """Six updates of two micro-batches; checkpoints after three and six."""
    world = make_world(context, torch.device("cpu"))
    torch.manual_seed(0)
    clips = MemoryClips(moving_clips(24, 0, frames=8, size=32).video)
    encoder = build_encoder(EncoderConfig(dim=32, depth=2, heads=2))
    config = PretrainConfig(
        steps=STEPS, batch=BATCH, predictor_width=32, future_share=0.5, budgets=(0.3, 0.8), log_every=1, **TERMS
    )
    phase = in_precision(build_phase(encoder, config, 0), precision)
    if kind == "fsdp":
        phase = shard(phase, world)
    share_tokens(phase, world.context)
    optimizer = build_adamw(phase, 1e-3, 0.04)
    engine = ENGINES[kind](phase, optimizer, torch.device("cpu"), 1.0, precision=precision, world=world)
    settings = FitSettings(STEPS, BATCH, 1e-3, accumulate=2, save_every=3, log_every=1)
    fit(engine, len(clips), clips.batch, settings, folder)
    return engine


def ranks(rank: int, world: int, port: int, runs: list[tuple[str, str, int]], out: str) -> None:
    """Each of `runs` (name, engine, ranks a context group) in a process group of `world` ranks."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distrib.initialize(120)
    for name, kind, context in runs:
        engine = train(kind, Path(out) / name, context)
        kept = {key: whole(p.detach()) for key, p in engine.phase.named_parameters()}
        torch.save(kept, f"{out}/{name}/rank_{rank}.pt")
    distrib.shutdown()
