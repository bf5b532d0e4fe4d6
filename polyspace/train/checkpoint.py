"""Training state on disk: `step_NNNNNN/{model.safetensors, trainer.pt, checksums.json}` and `latest`, each atomic.

Where every rank holds a part, the parts lie in `step_NNNNNN/sharded`, written by torch.distributed.checkpoint in
safetensors form (its own form holds a pickle). Any engine on any number of ranks reads both.
"""

import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyspace.train.engine import SLOTS, Engine
from polyspace.utils.checkpoint_io import (
    load_tensors,
    load_torch,
    read_json,
    save_tensors,
    save_torch,
    sha256_file,
    write_sealed,
    write_text,
)
from polyspace.utils.distrib import barrier, is_main
from polyspace.utils.errors import UserError
from polyspace.utils.log import warn
from polyspace.utils.reading import FAULTS, brief, leaves_folder, read_text, reads

KEEP = 2
SHARDED = "sharded"


def rng_state() -> dict[str, Any]:
    """Every generator that a step may draw from, as plain values."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(words), gauss],
    }


def restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def save_checkpoint(folder: Path, step: int, engine: Engine, trainer: dict[str, Any]) -> None:
    """Write a step's folder, then point `latest` at it, then drop older ones but the last two. Of several ranks all
    come here; the first writes what all have."""
    place = folder / f"step_{step:06d}"
    trainer = trainer | {"step": step, "rng": rng_state()}
    if is_main():
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed here, perhaps with another engine
    barrier()
    model, optimizer = engine.model_state(), engine.optimizer_state()
    if engine.sharded:
        _write_parts(place / SHARDED, model, optimizer)
    if is_main():
        if not engine.sharded:
            save_tensors(place / "model.safetensors", model)
            trainer |= {"optimizer": optimizer}
        save_torch(place / "trainer.pt", trainer)
        files = sorted(f for f in place.rglob("*") if f.suffix in (".safetensors", ".pt"))
        write_sealed(place / "checksums.json", {str(f.relative_to(place)): sha256_file(f) for f in files})
        write_text(folder / "latest", place.name + "\n")
        for old in sorted(folder.glob("step_*"), key=lambda kept: int(kept.name.removeprefix("step_")))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    barrier()


def _write_parts(place: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp  # a second of import that one process need not pay

    state = {f"model/{k}": v for k, v in model.items()} | {f"optimizer/{k}": v for k, v in optimizer.items()}
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(place), save_distributed=True))


def latest_step(folder: Path) -> str:
    """What `latest` names; UserError for anything but a folder of a step."""
    name = read_text(folder / "latest", "checkpoint").strip()
    if not re.fullmatch(r"step_\d+", name):
        raise UserError(f"{folder / 'latest'} names {name!r:.80}, which is no step")
    return name


def load_checkpoint(folder: Path, engine: Engine) -> dict[str, Any] | None:
    """Restore model and optimizer from `latest` and return the trainer's state, or None where there is none yet. Where
    that one is damaged, a warning, and the newest one that isn't: the steps in between are done again."""
    if not (folder / "latest").is_file():
        return None
    place = _newest_sound(folder)
    trainer = load_torch(place / "trainer.pt", "checkpoint")
    if (place / SHARDED).is_dir():
        model, optimizer = _read_parts(place / SHARDED, engine)
    elif "optimizer" in trainer:
        model, optimizer = load_tensors(place / "model.safetensors", "checkpoint"), trainer["optimizer"]
    else:
        raise UserError(f"checkpoint {place} was written by another release; remove it and train again")
    with reads(place, "checkpoint"):
        engine.load_state(model, optimizer, place)
    return trainer


def _newest_sound(folder: Path) -> Path:
    """The checkpoint that `latest` names, or behind it the newest whole one; UserError where there is none."""
    named = (folder / "latest").read_text(errors="replace").strip()
    steps = {f.name: int(f.name.removeprefix("step_")) for f in folder.glob("step_*") if f.name[5:].isdecimal()}
    faults = [] if named in steps else [f"{folder / 'latest'} is damaged: it names no checkpoint that is there"]
    for name in sorted(steps, key=lambda s: (s == named, steps[s]), reverse=True):
        fault = _fault(folder / name)
        if fault is None:
            if faults:
                warn(f"{faults[0]}; going on from {name} instead")
            return folder / name
        faults.append(fault)
    raise UserError(f"{faults[0]}, and no other one is whole; remove {folder} to begin again")


def _fault(place: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything."""
    try:
        sums = read_json(place / "checksums.json", "checkpoint", dict[str, str])
    except UserError as error:
        return str(error)
    for name, expected in sums.items():
        if leaves_folder(name):
            return f"checkpoint {place / 'checksums.json'} names a file outside its folder: {name!r}"
        if not (place / name).is_file() or sha256_file(place / name) != expected:
            return f"checkpoint {place / name} is damaged: its sha256 is not the recorded one"
    return None


def _read_parts(place: Path, engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(model, optimizer) as this engine holds them, from parts that any number of ranks has written."""
    import torch.distributed.checkpoint as dcp
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        return _loaded(dcp.HuggingFaceStorageReader(str(place)), place, engine)
    except (SafetensorError, CheckpointException, *FAULTS) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"checkpoint {place} is damaged ({brief(error)})") from error


def _loaded(reader: Any, place: Path, engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    import torch.distributed.checkpoint as dcp

    names = reader.read_metadata().state_dict_metadata
    own = engine.model_state()
    wanted: dict[str, Tensor] = {f"model/{name}": torch.empty_like(value) for name, value in own.items()}
    lacking = sorted(wanted.keys() - names.keys())
    if lacking:
        raise UserError(f"{place} does not fit the model: missing {lacking[:3]}")
    for key in names:
        kind, _, rest = key.partition("/")
        slot, _, name = rest.partition("/")
        if kind == "optimizer" and slot in SLOTS and name in own:
            wanted[key] = torch.zeros(1) if slot == "step" else torch.empty_like(own[name])
    dcp.load(wanted, storage_reader=reader, no_dist=not engine.sharded)
    parts = (
        {k.removeprefix(f"{kind}/"): v for k, v in wanted.items() if k.startswith(kind)}
        for kind in ("model", "optimizer")
    )
    model, optimizer = parts
    return model, optimizer
