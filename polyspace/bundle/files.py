"""A bundle on disk: how it is written and read, and how older forms are brought up to date.

Tensors are safetensors, everything else is JSON, so nothing that is loaded can execute. bundle.json names every file
with its sha256, and carries a sum of itself.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import TypedDict

from polyspace.bundle.parts import Bundle, student_card
from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.converters import ConverterBank, bank_from_state
from polyspace.report.bundle_card import bundle_card
from polyspace.train.alignment.fusion_phase import HeadSet, HeadShape
from polyspace.utils.array_file import disk_errors
from polyspace.utils.checkpoint_io import (
    check_strict,
    load_strict,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    sha256_json,
    sync_path,
    write_json,
    write_text,
)
from polyspace.utils.errors import UserError
from polyspace.utils.folders import copy_file, sole_writer
from polyspace.utils.reading import check_form, leaves_folder, reads
from polyspace.version import __version__

FORMAT, VERSION = "polyspace.bundle", 2  # 2: files and their sums in one table; sampling and order recorded
PARTS = ("student", "language", "probe", "converters.safetensors", "token_converters.safetensors", "fusion.safetensors")


def save_bundle(bundle: Bundle, folder: Path, with_student: bool = True) -> None:
    """Write the folder; what an older bundle left there goes. Without `with_student` its weights stay where they are,
    and bundle.json names the place by the way from its folder; a student from the hub is never copied."""
    folder = folder.resolve()
    with sole_writer(folder, deep=0):
        made = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(made, ignore_errors=True)  # of a killed run
        try:
            with disk_errors(made):
                _save(bundle, folder, made, with_student)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _save(bundle: Bundle, folder: Path, made: Path, with_student: bool) -> None:
    made.mkdir(parents=True)
    copied = with_student and bool(bundle.card.files) and bundle.card.revision == "local"
    _write_parts(bundle, made, copied)
    sums = {p.relative_to(made).as_posix(): sha256_file(p) for p in made.rglob("*") if p.is_file()}
    about = _describe(bundle, folder, copied) | {"files": dict(sorted(sums.items()))}
    write_text(made / "README.md", bundle_card(about))
    write_json(made / "bundle.json", about | {"sha256": sha256_json(about)})
    for name in ("bundle.json", *PARTS):  # a bundle is whole while its bundle.json is there
        _remove(folder / name)
    for path in sorted(made.iterdir(), key=lambda p: p.name == "bundle.json"):
        _remove(folder / path.name)
        os.replace(path, folder / path.name)
    sync_path(folder)


def _write_parts(bundle: Bundle, made: Path, copied: bool) -> None:
    for path in bundle.card.files if copied else ():
        (made / "student").mkdir(exist_ok=True)
        copy_file(path, made / "student" / path.name)
    for name, place in bundle.folders.items():
        (made / name).mkdir()
        for file in (f"{name}.json", f"{name}.safetensors"):
            copy_file(place / file, made / name / file)
    heads = bundle.heads.heads if bundle.heads is not None else None
    parts = {"converters": bundle.converters, "token_converters": bundle.tokens, "fusion": heads}
    for name, module in parts.items():
        if module is not None:
            save_tensors(made / f"{name}.safetensors", module.state_dict())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _describe(bundle: Bundle, folder: Path, copied: bool) -> dict[str, Any]:
    card, place = bundle.card, bundle.card.checkpoint
    if not copied and card.revision == "local" and card.files:
        place = os.path.relpath(Path(place).expanduser().resolve(), folder)
    student = {"name": card.name, "checkpoint": "student" if copied else place, "copied": copied}
    spaces = {name: space | {"checkpoint": _public(space)} for name, space in bundle.spaces.items()}
    heads = None
    if bundle.heads is not None:
        fusion = bundle.heads.heads["fusion"]
        heads = {"hidden": fusion.student.out_features, "classes": bundle.classes, "choice": bundle.choice}
    order = {
        name: list(bank.dims)  # gates go by position, and a file of tensors forgets the order
        for name, bank in (("converters", bundle.converters), ("token_converters", bundle.tokens))
        if bank is not None
    }
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "polyspace": __version__,
        "student": student,
        "sampling": bundle.sampling,
        "views": list(bundle.views),
        "spaces": spaces,
        "order": order,
        "kind": bundle.kind,
        "held_out": bundle.held_out,
        "tokens_held_out": bundle.tokens_held_out,
        "heads": heads,
        "phases": sorted(bundle.folders),
        "metrics": bundle.metrics,
    }


def _public(space: dict[str, Any]) -> str:
    """Where weights lay on the maker's machine is nobody's business."""
    return Path(space["checkpoint"]).name if space["revision"] == "local" else space["checkpoint"]


def _from_1(about: dict[str, Any]) -> dict[str, Any]:
    """Version 1 named the student by its checkpoint alone, and listed sums beside each part."""
    name = about["student"]
    student = {"name": name, "checkpoint": about["checkpoint"], "copied": about["checkpoint"] == "student"}
    order = {"converters": [other for other in about["spaces"] if other != name]}
    files = {f"{part}.safetensors": value for part, value in about["sums"].items()}
    kept = {k: v for k, v in about.items() if k not in ("checkpoint", "sums", "sha256")}
    new = {"student": student, "sampling": "segments", "views": [1, 1], "order": order, "files": files}
    return kept | new | {"tokens_held_out": {}, "phases": []}


# version -> what makes the next version of it
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}


class Heads(TypedDict):
    hidden: int
    classes: list[str]
    choice: dict[str, Any]


class Student(TypedDict):
    name: str
    checkpoint: str


class About(TypedDict):
    """bundle.json of this release's version."""

    student: Student
    sampling: str
    views: list[int]
    spaces: dict[str, dict[str, Any]]
    order: dict[str, list[str]]
    kind: str | None
    held_out: dict[str, Any]
    tokens_held_out: dict[str, Any]
    heads: Heads | None
    phases: list[Literal["language", "probe"]]
    metrics: dict[str, Any]
    files: dict[str, str]


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json of this release's version, older ones migrated; every file is compared with its sum. UserError for a
    newer version, a changed or missing file, or a folder that is no bundle."""
    about = read_json(folder / "bundle.json", "bundle")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{folder / 'bundle.json'} is not a bundle's")
    version = about.get("format_version")
    if not isinstance(version, int) or version < 1 or version > VERSION:
        raise UserError(
            f"{folder} is a bundle of format version {version!r:.40}; this release reads up to {VERSION}: update "
            "polyspace"
        )
    if about.get("sha256") != sha256_json({k: v for k, v in about.items() if k != "sha256"}):
        raise UserError(f"{folder / 'bundle.json'} is damaged: its sha256 is not the recorded one")
    for old in range(version, VERSION):
        with reads(folder / "bundle.json", f"bundle of version {old}"):
            about = MIGRATIONS[old](about) | {"format_version": old + 1}
    check_form(about, About, folder / "bundle.json", "bundle")
    for name, expected in about["files"].items():
        path = folder / name
        if leaves_folder(name):
            raise UserError(f"{folder / 'bundle.json'} names a file outside its folder: {name}")
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if sha256_file(path) != expected:
            raise UserError(f"{path} is damaged: its sha256 is not the recorded one")
    return about


def load_bundle(folder: Path, student: str | None = None) -> Bundle:
    """Read a bundle; `student` says where the student's weights lie, if not where bundle.json says."""
    about = read_bundle(folder)
    with reads(folder, "bundle"):
        return _load(about, folder, student)


def _load(about: dict[str, Any], folder: Path, student: str | None) -> Bundle:
    card = _student(about, folder, student)
    banks: dict[str, ConverterBank] = {}
    for name in ("converters", "token_converters"):
        if f"{name}.safetensors" in about["files"]:
            file = folder / f"{name}.safetensors"
            banks[name] = bank_from_state(load_tensors(file, "converters"), str(file), about["order"][name])
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
        views=(about["views"][0], about["views"][1]),
    )
    return made if about["heads"] is None else _with_heads(made, about["heads"], folder / "fusion.safetensors")


def _student(about: dict[str, Any], folder: Path, given: str | None) -> BackboneCard:
    known = about["student"]
    space = about["spaces"][known["name"]]
    if given is not None and space["backend"] == "identity":
        raise UserError(f"the student of {folder} is a stand-in; {given} can't take its place")
    local = space["revision"] == "local" and space["backend"] != "identity"
    place = given or (str(folder / known["checkpoint"]) if local else known["checkpoint"])
    if local and not Path(place).is_dir():
        raise UserError(
            f"the student's weights are not in {place}; say where they are: polyspace.load(…, student=FOLDER)"
        )
    return student_card(known["name"], space, place, str(folder))


def _with_heads(made: Bundle, about: dict[str, Any], file: Path) -> Bundle:
    if made.converters is None:
        raise UserError(f"{file} needs the bundle's converters, and there are none")
    shape = HeadShape(made.card.dim, made.converters.dims, about["hidden"], len(about["classes"]))
    banks, state = {"fusion": made.converters}, load_tensors(file, "fusion head")
    with torch.device("meta"):  # sizes are believed as far as the tensors go
        check_strict(HeadSet(shape, banks).heads, state, file)
    heads = HeadSet(shape, banks)
    load_strict(heads.heads, state, file)
    heads = heads.eval().requires_grad_(False)
    return replace(made, heads=heads, classes=about["classes"], choice=about["choice"])
