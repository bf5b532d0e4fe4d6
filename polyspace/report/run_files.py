"""What a folder holds that a report can tell of: runs, evaluations, labels curves, searches, moved indexes."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError

DEEP = 4  # folders below the one that is asked for
SKIPPED = {"points", "cache", "data", "tensorboard"}
Entry = tuple[Path, dict[str, Any]]


class Step(TypedDict):
    line: str
    seconds: float


class Backbones(TypedDict):
    words: str
    header: list[str]
    rows: list[list[Any]]


class Demo(TypedDict, total=False):
    """demo.json: what the demo says of itself, and the commands that it ran."""

    title: str
    intro: str
    backbones: Backbones
    steps: list[Step]


@dataclass
class RunFiles:
    """Files of each kind with what they hold, in order of their paths; `unread` says why others could not be used."""

    folder: Path
    manifests: list[Entry] = field(default_factory=list)
    evaluations: list[Entry] = field(default_factory=list)
    curves: list[Entry] = field(default_factory=list)
    stores: list[Entry] = field(default_factory=list)
    indexes: list[Entry] = field(default_factory=list)
    searches: list[Entry] = field(default_factory=list)
    converters: list[Entry] = field(default_factory=list)
    bundles: list[Entry] = field(default_factory=list)
    demo: dict[str, Any] | None = None
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        others = (self.indexes, self.searches, self.converters, self.bundles)
        return not any((self.manifests, self.evaluations, self.curves, self.stores, *others))

    def command(self, about: dict[str, Any] | None) -> str:
        """The line that made a file, from its `run` entry: the demo's own where it ran it, else as it was typed."""
        if not about:
            return ""
        words = [str(word) for word in about["argv"]]
        name = Path(words[0]).name if words else ""
        if words[1:2] == ["demo"]:  # it ran each command itself
            ran = [
                s["line"] for s in (self.demo or {}).get("steps", []) if s["line"].split()[1:2] == [about["command"]]
            ]
            if len(ran) == 1:
                return str(ran[0])
        if name in ("cli.py", "polyspace"):
            return shlex.join(["polyspace", *words[1:]])
        return shlex.join(
            ["python", "main.py", *words[1:]] if name == "main.py" else ["polyspace", about["command"], *words[1:]]
        )


def _walk(folder: Path, deep: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if deep and not path.name.startswith((".", "step_")) and path.name not in SKIPPED:
                yield from _walk(path, deep - 1)
        elif path.suffix == ".json":
            yield path


def find_files(folder: Path) -> RunFiles:
    """Look through `folder` and those in it. UserError where it is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = RunFiles(folder)
    for path in _walk(folder, DEEP):
        place = _kind(path, found)
        if place is None and path.name != "demo.json":
            continue
        try:
            value = read_json(path, "file", Demo if place is None else None)
        except UserError as fault:
            found.unread[str(path.relative_to(folder))] = str(fault)
            continue
        if not isinstance(value, dict):
            continue
        if place is None:
            found.demo = value
        elif path.name != "index.json" or "space" in value:
            place.append((path, value))
    return found


def _kind(path: Path, found: RunFiles) -> list[Entry] | None:
    """The list that a file of this name belongs to."""
    name = path.name
    exact = {
        "pipeline_manifest.json": found.manifests,
        "index.json": found.indexes,
        "search.json": found.searches,
        "converters_report.json": found.converters,
        "bundle.json": found.bundles,
    }
    if name in exact:
        return exact[name]
    if name.startswith("eval_"):
        return found.evaluations
    if name.startswith("labels_curve_"):
        return found.curves
    if name.startswith("features_") and not name.endswith(".run.json"):
        return found.stores
    return None
