"""`polyspace collect`: episodes of a wandering policy in Push-T, for the action phase."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from polyspace.config import Config, parse
from polyspace.planning.collect import collect
from polyspace.planning.pusht import PushT
from polyspace.train.downstream.episodes import save_views
from polyspace.utils.checkpoint_io import try_writing
from polyspace.utils.folders import clear_left_over
from polyspace.utils.log import say


class CollectConfig(Config):
    out: Path = Field(description="file to write (safetensors: video and actions)")
    episodes: int = Field(1500, ge=2, description="episodes")
    steps: int = Field(16, ge=1, description="actions an episode")
    size: int = Field(64, ge=16, description="pixels a side")
    seed: int = Field(0, ge=0, description="same seed, same episodes")


def main(argv: Sequence[str]) -> int:
    config = parse(
        CollectConfig,
        argv,
        prog="polyspace collect",
        about="Record episodes in the Push-T simulator (extra [robot]) for action.episodes.source=file.",
        example="polyspace collect --out outputs/pusht.safetensors --episodes 1500",
    )
    try_writing(config.out.parent)
    clear_left_over(config.out.parent)
    made = collect(PushT(size=config.size), config.episodes, config.steps, config.seed)
    save_views(config.out, torch.from_numpy(made.video), torch.from_numpy(made.actions))
    say(f"{config.episodes} episodes of {config.steps} steps -> {config.out}")
    return 0
