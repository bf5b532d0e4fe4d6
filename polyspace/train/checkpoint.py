"""Training state on disk: `step_NNNNNN/{model.safetensors, trainer.pt, checksums.json}` and `latest`, each atomic."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from polyspace.utils.checkpoint_io import (
    load_strict,
    load_tensors,
    load_torch,
    read_json,
    save_tensors,
    save_torch,
    sha256_file,
    write_json,
    write_text,
)
from polyspace.utils.errors import UserError

KEEP = 2


def rng_state() -> dict[str, Any]:
    """Every generator that a step may draw from, as plain values."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(words), gauss],
    }


def restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def save_checkpoint(folder: Path, step: int, model: nn.Module, trainer: dict[str, Any]) -> None:
    """Write a step's folder, then point `latest` at it, then drop older ones but the last two."""
    place = folder / f"step_{step:06d}"
    save_tensors(place / "model.safetensors", model.state_dict())
    save_torch(place / "trainer.pt", trainer | {"step": step, "rng": rng_state()})
    sums = {name: sha256_file(place / name) for name in ("model.safetensors", "trainer.pt")}
    write_json(place / "checksums.json", sums)
    write_text(folder / "latest", place.name + "\n")
    for old in sorted(folder.glob("step_*"), key=lambda kept: int(kept.name.removeprefix("step_")))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module) -> dict[str, Any] | None:
    """Restore the model from `latest` and return the trainer's state, or None where there is none yet."""
    latest = folder / "latest"
    if not latest.is_file():
        return None
    place = folder / latest.read_text().strip()
    sums = read_json(place / "checksums.json", "checkpoint")
    for name, expected in sums.items():
        if not (place / name).is_file() or sha256_file(place / name) != expected:
            raise UserError(f"checkpoint {place / name} is damaged: its sha256 is not the recorded one")
    load_strict(model, load_tensors(place / "model.safetensors", "checkpoint"), place)
    return load_torch(place / "trainer.pt", "checkpoint")
