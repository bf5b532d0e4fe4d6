"""Settings and steps that language, probe and action have in common."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from polyspace.models.vjepa.saved import find_encoder, load_encoder, read_encoder, save_encoder
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.report.figures import curves_figure, save_figure
from polyspace.train.checkpoint import latest_step
from polyspace.train.loop import fit
from polyspace.train.machine import Machine
from polyspace.train.phase import Phase
from polyspace.train.settings import TrainingConfig, fit_settings
from polyspace.utils import distrib
from polyspace.utils.checkpoint_io import read_json, sha256_file, write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.log import say
from polyspace.utils.reading import read_json_lines, reads

Unfreeze = Literal["none", "routing", "all"]


class PhaseConfig(TrainingConfig):
    """Of a phase that begins with an encoder."""

    init_from: Path | None = Field(None, description="folder of an encoder, or of a run with one; none: this run's own")
    cache_gib: float = Field(4.0, ge=0, description="a frozen encoder's answers are kept in memory up to so much")
    eval_every: int = Field(
        200, ge=0, description="updates between evaluations on the held-out part; 0 at the end only"
    )


@dataclass(frozen=True)
class Start:
    """The encoder that a phase begins with, in eval mode, where it came from, and what goes into it."""

    encoder: HNetViT | TubeletViT
    folder: Path
    sha256: str
    scale: dict[str, Any]
    values: dict[str, Any]


def encoder_folder(init_from: Path | None, work_dir: Path, phase: str) -> Path:
    """Where the phase's encoder lies; a UserError says what to do where there is none."""
    found = find_encoder(work_dir if init_from is None else init_from)
    if found is not None:
        return found
    if init_from is None:
        raise UserError(
            f"{phase} needs an encoder, and {work_dir / 'pretrain'} has none: run the pretrain phase first, or give "
            f"--init_from a folder with encoder.json"
        )
    raise UserError(f"{phase}: --init_from {init_from} holds no encoder (no encoder.json there or in its pretrain/)")


def load_start(config: Any, phase: str) -> Start:
    """Load the encoder that a run's phase begins with; UserError where the configuration asks for another shape."""
    folder = encoder_folder(getattr(config, phase).init_from or config.init_from, config.work_dir, phase)
    about = read_encoder(folder)
    for key, wanted in config.encoder.model_dump(exclude_unset=True).items():
        has = about["encoder"].get(key)
        if wanted is not None and (list(wanted) if isinstance(wanted, tuple) else wanted) != has:
            raise UserError(f"{phase}: encoder.{key} is {wanted} in the configuration, and {has} in {folder}")
    scale = about.get("input")
    if scale is None:
        raise UserError(f"{phase}: {folder / 'encoder.json'} does not say how pixels are normalised; pretrain again")
    return Start(load_encoder(folder), folder, about["sha256"], scale, about["encoder"])


def fit_phase(
    name: str,
    phase: Phase,
    source: Any,
    config: PhaseConfig,
    seed: int,
    folder: Path,
    machine: Machine,
    depends: dict[str, Any],
    prefetch: Callable[[Tensor], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train from where it stopped; the held-out metrics before the first update, and the last ones.

    `source` has len() and batch(visits)."""
    c = config
    engine = machine.engine(phase, c)
    before = folder / "first.json"
    if distrib.agreed(not (before.is_file() and (folder / "latest").is_file())):
        scores = engine.evaluate(0)
        if distrib.is_main():
            write_sealed(before, {"step": 0, **scores})
        distrib.barrier()
    settings = fit_settings(c, seed, c.eval_every or c.steps)
    last = fit(
        engine,
        len(source),
        source.batch,
        settings,
        folder,
        name=name,
        about=depends | {"precision": machine.precision},
        prefetch=prefetch,
        visits=prefetch is not None,
        track=machine.track,
    )
    phase.eval()
    return read_json(before, "metrics"), last


def curves(folder: Path, series: dict[str, str], y_label: str) -> list[str]:
    """One picture of held-out metrics over updates, before the first included; its path, if there is anything."""
    rows = [read_json(folder / "first.json", "metrics", dict[str, Any])]
    log = folder / "metrics.jsonl"
    if log.is_file():
        rows += [row for row in read_json_lines(log, "metrics") if row.get("eval")]
    with reads(log, "metrics"):
        lines = {
            title: ([int(r["step"]) for r in rows if key in r], [float(r[key]) for r in rows if key in r])
            for key, title in series.items()
            if any(key in r for r in rows)
        }
    if not lines:
        return []
    figure = curves_figure(lines, x_label="update", y_label=y_label)
    return [str(save_figure(figure, folder / "held_out.png"))]


def entry(
    folder: Path, start: Start, files: list[Path], about: dict[str, Any], first: dict[str, Any], last: dict[str, Any]
) -> dict[str, Any]:
    """What the pipeline manifest says about a phase."""
    return {
        "checkpoint": str(folder / latest_step(folder)),
        "sha256": {str(file): sha256_file(file) for file in files},
        "encoder": {"folder": str(start.folder), "sha256": start.sha256},
        "data": about,
        "first": first,
        "last": last,
    }


def save_learned(folder: Path, start: Start, encoder: HNetViT | TubeletViT | None, unfreeze: Unfreeze) -> list[Path]:
    """The encoder beside the phase's own files, where part of it has learned; the files."""
    if unfreeze == "none" or encoder is None:
        return []
    save_encoder(folder, encoder, start.values, {"init_from": str(start.folder), "learned": unfreeze}, start.scale)
    return [folder / "encoder.safetensors"]


def link(folder: Path, start: Start) -> dict[str, str]:
    """How a phase's files name their encoder: by the way from their folder, so that a run can be moved as a whole."""
    return {"encoder": os.path.relpath(start.folder, folder), "encoder_sha256": start.sha256}


def linked_encoder(folder: Path, about: dict[str, Any]) -> Path:
    """The folder of the encoder that `link` named; UserError where another one lies there now."""
    if not isinstance(about.get("encoder"), str):
        raise UserError(f"{folder} does not say which encoder it was trained on")
    place = folder / about["encoder"]
    if read_encoder(place)["sha256"] != about["encoder_sha256"]:
        raise UserError(f"{folder} was trained on another encoder than the one in {place}")
    return place


def note(name: str, start: Start, about: dict[str, Any]) -> None:
    say(f"{name}: {about['clips']} clips ({about['dataset']}), {about['held_out']} held out, encoder of {start.folder}")
