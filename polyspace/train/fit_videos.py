"""`polyspace fit --data DIR`: a person's own videos through the phases that make sense for them, and one report."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from polyspace.config import Config, parse, validate
from polyspace.data import build_dataset
from polyspace.data.records import VideoDataset
from polyspace.models.vjepa.saved import read_encoder
from polyspace.report.phase_sections import write_pipeline_report
from polyspace.train.downstream.common import encoder_folder
from polyspace.train.run import RunConfig, run
from polyspace.train.settings import Track
from polyspace.utils.errors import UserError
from polyspace.utils.log import say, warn

LEAST = 8  # clips without which nothing can be said


class FitConfig(Config):
    data: Path = Field(description="folder of videos: a folder a class, or any files")
    list: Path | None = Field(None, description="CSV of path, label, text, split; none: DIR/captions.csv where it is")
    out: Path = Field(Path("outputs/fit"), description="folder of the run and its report")
    init_from: Path | None = Field(None, description="folder of an encoder to start from instead of pretraining one")
    preset: str | None = Field(None, description="size of the encoder; none: tiny on a CPU, small on a GPU")
    steps: int | None = Field(None, ge=1, description="pretraining updates; none: 2000 on a CPU, 20000 on a GPU")
    workers: int = Field(2, ge=0, description="processes that decode files ahead")
    seed: int = Field(0, ge=0, description="of everything that is drawn")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    track: Track = ("auto",)


def choose(found: VideoDataset, init_from: Path | None) -> tuple[list[str], list[str]]:
    """Phases that these clips have something for, and a sentence for each that is left out."""
    phases, notes = ([] if init_from else ["pretrain"]), []
    captions = sum(bool(r.text) for r in found.records)
    if captions >= LEAST:
        phases.append("language")
    else:
        notes.append(f"No language phase: {captions} of {len(found.records)} clips have a caption; {LEAST} are needed.")
    sizes = Counter(r.label for r in found.records if r.label is not None)
    if len(sizes) > 1 and min(sizes.values()) > 1 and sum(sizes.values()) >= LEAST:
        phases.append("probe")
    else:
        notes.append(
            f"No probe: it needs two classes of two clips and {LEAST} clips in all; there are {len(sizes)} classes and "
            f"{sum(sizes.values())} labelled clips."
        )
    return phases, notes


def run_config(config: FitConfig, found: VideoDataset, phases: list[str], listed: Path | None) -> RunConfig:
    """The run's configuration: small clips and the tiny encoder on a CPU, 224² and the small one on a GPU."""
    gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    preset = config.preset or ("small" if gpu else "tiny")
    size, frames = (48, 12) if preset == "tiny" else (224, 16)
    if config.init_from is not None:
        about = read_encoder(encoder_folder(config.init_from, config.out, "fit"))
        size, frames = about["input"]["size"], about["input"]["frames"]
    batch = min(32 if gpu else 4, len(found.records))
    heads = min(64, max(2, len(found.records) // 2))
    values: dict[str, Any] = {
        "work_dir": config.out,
        "sequence": ",".join(phases),
        "seed": config.seed,
        "device": config.device,
        "track": config.track,
        "precision": "bf16" if gpu else "fp32",
        "init_from": config.init_from,
        "data": {
            "dataset": "videofolder",
            "root": config.data,
            "list": listed,
            "size": size,
            "frames": frames,
            "workers": config.workers,
        },
        "encoder": {} if config.init_from else {"preset": preset},
        "pretrain": {"steps": config.steps or (20_000 if gpu else 2000), "batch": batch},
        "language": {"batch": heads, "skip_uncaptioned": True, "steps": 600},
        "probe": {"batch": heads},
    }
    return validate(RunConfig, values, "polyspace fit")


def fit_videos(config: FitConfig) -> Path:
    """Run the phases and write the report; returns its path."""
    own = config.data / "captions.csv"
    listed = config.list or (own if own.is_file() else None)
    found = build_dataset("videofolder", config.data, "train", list_file=listed)
    if len(found.records) < LEAST:
        raise UserError(f"--data {config.data} has {len(found.records)} videos; at least {LEAST} are needed")
    phases, notes = choose(found, config.init_from)
    for note in notes:
        say(note)
    if found.missing:
        warn(f"{len(found.missing)} listed files are not there, the first: {found.missing[0]}")
        notes.append(f"{len(found.missing)} listed files were not there.")
    if not phases:
        raise UserError(f"--data {config.data}: with --init_from there is nothing left to do. {' '.join(notes)}")
    manifest = run(run_config(config, found, phases, listed))
    kinds = f"{len(found.records)} training clips, {len(found.classes)} classes"
    return write_pipeline_report(config.out, manifest, f"Videos of {config.data.name or config.data}", [kinds, *notes])


def main(argv: Sequence[str]) -> int:
    config = parse(
        FitConfig,
        argv,
        prog="polyspace fit",
        about="Train an encoder on your own videos, align it with captions and probe it where there are labels.",
        example="polyspace fit --data ~/videos --out outputs/fit",
    )
    say(f"-> {fit_videos(config)}")
    return 0
