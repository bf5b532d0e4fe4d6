"""What every data set builder returns: classes in official order and one record a clip."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from polyspace.utils.errors import UserError

VIDEO_ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ClipRecord:
    """One clip: `id` is unique, `label` a class id or None, `group` the source video it was cut from."""

    id: str
    path: Path
    label: int | None
    group: str
    text: str | None = None


@dataclass(frozen=True)
class VideoDataset:
    """Clips that are on disk, ids of listed clips that are not (`missing`), and remarks for the log (`notes`)."""

    name: str
    split: str
    classes: list[str]
    records: list[ClipRecord]
    missing: list[str]
    notes: list[str] = field(default_factory=list)


def check_root(root: Path, name: str) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder; {name} is expected there")
    return root


def inside(root: Path, relative: str) -> Path:
    """`root/relative`; a name that is absolute or climbs out of root is refused."""
    plain = relative.replace("\\", "/")
    if plain.startswith("/") or os.path.isabs(relative) or ".." in plain.split("/") or "\0" in plain:
        raise UserError(f"an annotation names {relative!r:.200}, which lies outside --root {root}")
    return root / plain


def partition(
    name: str, split: str, classes: list[str], candidates: Iterable[ClipRecord], notes: list[str]
) -> VideoDataset:
    """Part the listed clips into present and missing; an empty split or a clip listed twice is a UserError."""
    records, missing, seen = [], [], set()
    for record in candidates:
        if record.id in seen:
            raise UserError(f"{name} {split}: clip {record.id!r:.200} is listed twice")
        seen.add(record.id)
        if os.path.isfile(record.path):  # a name too long for the system is no file
            records.append(record)
        else:
            missing.append(record.id)
    if not seen:
        raise UserError(f"{name}: the {split} split lists no clip")
    if not records:
        raise UserError(f"{name}: none of the {len(missing)} clips of the {split} split is under --root")
    return VideoDataset(name, split, classes, records, missing, notes)
