"""`polyspace index`: videos straight into a feature index of any space that a bundle serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

import polyspace
from polyspace.config import Config, parse, run_command
from polyspace.data import build_dataset
from polyspace.data.records import VIDEO_ENDINGS
from polyspace.utils.errors import UserError
from polyspace.utils.log import say


class IndexConfig(Config):
    bundle: Path = Field(description="folder of a bundle, or of a main.py run")
    videos: list[Path] = Field([], description="files, and folders that are searched for videos")
    dataset: str | None = Field(None, description="instead of --videos: a data set's name, with --root and --split")
    root: Path | None = Field(None, description="the data set's folder")
    split: str = Field("train", description="train, validation or test")
    space: str | None = Field(None, description="one that the bundle serves; none: the student's own")
    metric: Literal["cosine", "l2"] = Field("cosine", description="how neighbours are measured")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    out: Path = Field(description="folder of the index; an older one is replaced")


def find_videos(config: IndexConfig) -> list[Path]:
    """What is to be indexed, in order. UserError where there is nothing, or both ways to name it are used."""
    if (config.dataset is None) == (not config.videos):
        raise UserError("give either --videos or --dataset with --root")
    if config.dataset is not None:
        if config.root is None:
            raise UserError(f"--dataset {config.dataset} needs its --root")
        return [record.path for record in build_dataset(config.dataset, config.root, config.split).records]
    found = []
    for place in config.videos:
        if not place.exists():
            raise UserError(f"--videos {place} does not exist")
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS) if place.is_dir() else [place]
        if not inside:
            raise UserError(f"--videos {place} holds no videos ({', '.join(VIDEO_ENDINGS)})")
        found += inside
    return list(dict.fromkeys(found))


def main(argv: Sequence[str]) -> int:
    config = parse(
        IndexConfig,
        argv,
        prog="polyspace index",
        about="Videos into a feature index; one of the space `language` can be searched with sentences.",
        example="polyspace index --bundle bundle --videos my_videos --space videomae --out indexes/videomae",
    )
    videos = find_videos(config)
    made = polyspace.load(config.bundle, device=config.device).index(videos, config.out, config.space, config.metric)
    say(f"{made.rows} of {len(videos)} videos, {made.about['dim']} dims of {made.about['space']} -> {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
