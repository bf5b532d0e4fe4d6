"""What the manifest of a feature store must hold before anything is done with it."""

from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from polyspace.utils.errors import UserError
from polyspace.utils.reading import check_form


class Space(TypedDict):
    dim: int
    backend: str


class StoredClip(TypedDict):
    id: str
    label: int | None
    group: str
    text: NotRequired[str | None]


class Shard(TypedDict):
    file: str
    sha256: str


class Manifest(TypedDict):
    """What every store's manifest has; further keys are for people."""

    fingerprint: str
    settings: dict[str, Any]
    student: str
    spaces: dict[str, Space]
    classes: list[str]
    clips: list[StoredClip]
    shards: list[Shard]


def check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """UserError where a part is missing or of another type, the student has no space, or a shard lies elsewhere."""
    check_form(manifest, Manifest, path, "feature store")
    if manifest["student"] not in manifest["spaces"]:
        raise UserError(f"{path} has no space of its student {manifest['student']!r}")
    for shard in manifest["shards"]:
        if Path(shard["file"]).name != shard["file"]:
            raise UserError(f"{path} names a shard outside its folder: {shard['file']!r}")
