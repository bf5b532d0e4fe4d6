"""A bundle on disk: how it is written and read, and how older forms are brought up to date.

Tensors are safetensors, everything else is JSON, so nothing that is loaded can execute. bundle.json names every file
with its sha256, and carries a sum of itself.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyspace.bundle.parts import Bundle
from polyspace.models.backbones import BackboneCard, describe_all
from polyspace.models.spaces.converters import ConverterBank, bank_from_state
from polyspace.report.bundle_card import bundle_card
from polyspace.train.alignment.fusion_phase import HeadSet, HeadShape
from polyspace.utils.checkpoint_io import (
    load_strict,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)
from polyspace.utils.errors import UserError
from polyspace.version import __version__

FORMAT, VERSION = "polyspace.bundle", 2  # 2: files and their sums in one table; sampling and budget recorded


def save_bundle(bundle: Bundle, folder: Path, with_student: bool = True) -> None:
    """Write the folder. Without `with_student` its weights stay where they are, and bundle.json names the place; a
    student from the hub is never copied."""
    folder.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    copied = with_student and bool(bundle.card.files) and bundle.card.revision == "local"
    if copied:
        for path in bundle.card.files:
            _copy(path, folder / "student" / path.name, sums, folder)
    for name, place in bundle.folders.items():
        for file in (f"{name}.json", f"{name}.safetensors"):
            _copy(place / file, folder / name / file, sums, folder)
    parts = {"converters": bundle.converters, "token_converters": bundle.tokens}
    for name, bank in parts.items():
        if bank is not None:
            save_tensors(folder / f"{name}.safetensors", bank.state_dict())
            sums[f"{name}.safetensors"] = sha256_file(folder / f"{name}.safetensors")
    if bundle.heads is not None:
        save_tensors(folder / "fusion.safetensors", bundle.heads.heads.state_dict())
        sums["fusion.safetensors"] = sha256_file(folder / "fusion.safetensors")
    about = _describe(bundle, copied) | {"files": dict(sorted(sums.items()))}
    write_text(folder / "README.md", bundle_card(about))
    write_json(folder / "bundle.json", about | {"sha256": sha256_json(about)})


def _copy(source: Path, target: Path, sums: dict[str, str], folder: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    sums[str(target.relative_to(folder))] = sha256_file(target)


def _describe(bundle: Bundle, copied: bool) -> dict[str, Any]:
    card = bundle.card
    student: dict[str, Any] = {
        "name": card.name,
        "checkpoint": "student" if copied else card.checkpoint,
        "revision": card.revision,
    }
    student |= {"digest": card.digest, "frames": card.plan.frames, "num_chunks": card.num_chunks}
    heads = None
    if bundle.heads is not None:
        fusion = bundle.heads.heads["fusion"]
        heads = {"hidden": fusion.student.out_features, "classes": bundle.classes, "choice": bundle.choice}
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "polyspace": __version__,
        "student": student,
        "sampling": bundle.sampling,
        "spaces": bundle.spaces,
        "kind": bundle.kind,
        "held_out": bundle.held_out,
        "tokens_held_out": bundle.tokens_held_out,
        "heads": heads,
        "phases": sorted(bundle.folders),
        "metrics": bundle.metrics,
    }


def _from_1(about: dict[str, Any]) -> dict[str, Any]:
    """Version 1 named the student by its checkpoint alone, and listed sums beside each part."""
    name = about["student"]
    space = about["spaces"][name]
    student = {"name": name, "checkpoint": about["checkpoint"], "revision": space["revision"]}
    student |= {"digest": space["digest"], "frames": space["plan"]["frames"], "num_chunks": None}
    files = {f"{part}.safetensors": value for part, value in about["sums"].items()}
    kept = {k: v for k, v in about.items() if k not in ("checkpoint", "sums", "sha256")}
    return kept | {"student": student, "sampling": "segments", "files": files, "tokens_held_out": {}, "phases": []}


# version -> what makes the next version of it
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json of this release's version, older ones migrated; every file is compared with its sum. UserError for a
    newer version, a changed or missing file, or a folder that is no bundle."""
    about = read_json(folder / "bundle.json", "bundle")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{folder / 'bundle.json'} is not a bundle's")
    version = about.get("format_version")
    if not isinstance(version, int) or version < 1 or version > VERSION:
        raise UserError(
            f"{folder} is a bundle of format version {version}; this release reads up to {VERSION}: update polyspace"
        )
    if about.get("sha256") != sha256_json({k: v for k, v in about.items() if k != "sha256"}):
        raise UserError(f"{folder / 'bundle.json'} is damaged: its sha256 is not the recorded one")
    for old in range(version, VERSION):
        about = MIGRATIONS[old](about) | {"format_version": old + 1}
    for name, expected in about["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / 'bundle.json'} names a file outside its folder: {name}")
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if sha256_file(path) != expected:
            raise UserError(f"{path} is damaged: its sha256 is not the recorded one")
    return about


def load_bundle(folder: Path, student: str | None = None) -> Bundle:
    """Read a bundle; `student` says where the student's weights lie, if not where bundle.json says."""
    about = read_bundle(folder)
    card = _student(about, folder, student)
    banks: dict[str, ConverterBank] = {}
    for name in ("converters", "token_converters"):
        if f"{name}.safetensors" in about["files"]:
            file = folder / f"{name}.safetensors"
            banks[name] = bank_from_state(load_tensors(file, "converters"), str(file))
    made = Bundle(
        card,
        about["sampling"],
        about["spaces"],
        banks.get("converters"),
        about["kind"],
        about["held_out"],
        banks.get("token_converters"),
        about["tokens_held_out"],
        folders={name: folder / name for name in about["phases"]},
        metrics=about["metrics"],
    )
    return made if about["heads"] is None else _with_heads(made, about["heads"], folder / "fusion.safetensors")


def _student(about: dict[str, Any], folder: Path, given: str | None) -> BackboneCard:
    known = about["student"]
    name, revision = known["name"], known["revision"]
    place = given or (str(folder / "student") if known["checkpoint"] == "student" else known["checkpoint"])
    at = "" if given or revision == "local" else f"@{revision}"
    stand_in = about["spaces"][name]["backend"] == "identity"
    options = [] if stand_in else [f"{name}={place}{at}"]
    card = describe_all(name, [], known["frames"], options, num_chunks=known["num_chunks"])[name]
    if card.digest != known["digest"]:
        raise UserError(f"{folder} belongs to other weights of {name} than those in {place}")
    return card


def _with_heads(made: Bundle, about: dict[str, Any], file: Path) -> Bundle:
    assert made.converters is not None
    shape = HeadShape(made.card.dim, made.converters.dims, about["hidden"], len(about["classes"]))
    heads = HeadSet(shape, {"fusion": made.converters})
    load_strict(heads.heads, load_tensors(file, "fusion head"), file)
    heads = heads.eval().requires_grad_(False)
    return replace(made, heads=heads, classes=about["classes"], choice=about["choice"])
