"""One page that tells all that lies in a folder: `polyspace report`."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyspace.report.alignment_sections import converter_section, evaluation_sections, labels_section, moved_section
from polyspace.report.chunk_figures import chunks_figure
from polyspace.report.eval_report import stand_in_notice
from polyspace.report.html import Page
from polyspace.report.library import Library
from polyspace.report.library_sections import found_section, library_sections
from polyspace.report.look_sections import CHUNKS_CAPTION, chunk_facts, motion_section
from polyspace.report.phase_sections import phase_sections, read_lines
from polyspace.report.run_files import RunFiles
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError
from polyspace.utils.looks_file import Looks


@dataclass(frozen=True)
class Seen:
    """What files alone do not hold: clips in their spaces, the student's chunks of some of them and its tokens against
    motion, captions and thumbnails of what searches found."""

    library: Library | None = None
    looks: Looks | None = None
    counted: Mapping[str, Any] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    found: bytes | None = None
    notes: Sequence[str] = ()


def write_report(files: RunFiles, seen: Seen, path: Path, command: str) -> Path:
    """Write the page; returns its path."""
    demo = files.demo or {}
    page = Page(demo.get("title", f"PolySpace: {files.folder.resolve().name}"))
    for notice in dict.fromkeys(filter(None, _notices(files, seen))):
        page.warning(notice)
    if "intro" in demo:
        page.text(demo["intro"])
    for note in seen.notes:
        page.text(note, small=True)
    if "backbones" in demo:
        page.heading("Backbones")
        page.text(demo["backbones"]["words"])
        page.table(demo["backbones"]["rows"], demo["backbones"]["header"])
    _chunks(page, seen, command)
    if seen.library is not None:
        with page.section(seen.library.title):
            library_sections(page, seen.library)
    for place, result in files.evaluations:
        with page.section(place.name, bool(result.get("stand_ins"))):
            evaluation_sections(page, place, result, files.command(result.get("run")))
    if not files.evaluations:
        for place, result in files.converters:
            with page.section(place.name):
                line = files.command(_run(place.parent))
                converter_section(page, result, read_lines(place.parent / "metrics.jsonl"), line)
    for place, result in files.curves:
        with page.section(place.name, bool(result.get("stand_ins"))):
            labels_section(page, result, files.command(result.get("run")))
    for place, manifest in files.manifests:
        with page.section(place.name):
            phase_sections(page, place.parent, manifest, files.command(_run(place.parent)))
    queries = [query for _, search in files.searches for query in search.get("queries", [])]
    if queries:
        with page.section("search.json"):
            found_section(page, queries, seen.texts, seen.found)
    with page.section("index.json"):
        moved_section(page, files.indexes)
    _ending(page, files, command)
    return page.write(path)


def _run(folder: Path) -> dict[str, Any] | None:
    """How the run in a folder was started; None where its file is missing or broken."""
    with contextlib.suppress(UserError):
        return read_json(folder / "run.json", "run")
    return None


def _notices(files: RunFiles, seen: Seen) -> list[str | None]:
    """Of every kind of file that says which spaces are stand-ins."""
    named = [result.get("stand_ins") or [] for _, result in [*files.evaluations, *files.curves]]
    named += [list(seen.library.stand_ins) if seen.library is not None else []]
    named += [[about["space"]] for _, about in files.indexes if about.get("stand_in")]
    described = [about.get("spaces") or {} for _, about in [*files.stores, *files.bundles, *files.converters]]
    named += [[name for name, space in s.items() if _identity(space)] for s in described if isinstance(s, dict)]
    return [stand_in_notice({"stand_ins": names}) for names in named]


def _identity(space: Any) -> bool:
    return isinstance(space, dict) and space.get("backend") == "identity"


def _chunks(page: Page, seen: Seen, command: str) -> None:
    if seen.looks is None and seen.counted is None:
        return
    page.heading("The student's tokens")
    if seen.looks is not None:
        page.figure(chunks_figure(seen.looks), CHUNKS_CAPTION, command, chunk_facts(seen.looks))
    if seen.counted is not None:
        motion_section(page, dict(seen.counted), command)


def _ending(page: Page, files: RunFiles, command: str) -> None:
    """How all this was made."""
    page.heading("Commands")
    steps = (files.demo or {}).get("steps", [])
    lines = [f"# {step['seconds']:.1f} s\n{step['line']}" for step in steps]
    if not lines:
        told = [result.get("run") for _, result in [*files.evaluations, *files.curves]]
        told += [_run(place.parent) for place, _ in files.manifests]
        lines = list(dict.fromkeys(files.command(run) for run in told if run))
    page.code("\n\n".join([*lines, f"# this page\n{command}"]))
    runs = [result["run"] for _, result in files.evaluations if "environment" in result.get("run", {})]
    if runs:
        env = ", ".join(f"{k} {v}" for k, v in runs[0]["environment"].items() if v is not None)
        page.text(f"polyspace {runs[0]['version']}; {env}.", small=True)
    for name, reason in (files.unread | page.failed).items():
        page.text(f"Left out: {name}: {reason}", small=True)
