"""`polyspace report RUN_DIR`: one self-contained page of all that lies in a folder, with pictures."""

import copy
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

import polyspace
from polyspace.api import PolySpace
from polyspace.bundle.library import captions, few_frames, make_library, video_paths
from polyspace.config import Config, parse, run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.data.video import VideoError
from polyspace.models.spaces.converters import ConverterBank, load_converters
from polyspace.report.library import Library, thumbnails
from polyspace.report.run_files import RunFiles, find_files
from polyspace.report.run_report import Seen, write_report
from polyspace.train.alignment.stores import check_fit, check_space
from polyspace.train.vjepa.looks import COUNTED, SHOWN
from polyspace.utils.chunk_map import ChunkMap
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress, say, warn
from polyspace.utils.looks_file import Looks, motion_of, tokens_against_motion


class ReportConfig(Config):
    words: ClassVar[tuple[str, ...]] = ("run_dir",)
    run_dir: Path = Field(description="folder of a run, an evaluation, a demo, or of several of them")
    out: Path | None = Field(None, description="the page; none: report.html in RUN_DIR")
    map: Literal["pca", "umap"] = Field("pca", description="how spaces are drawn in two dims (umap: umap-learn)")
    clips: int = Field(300, ge=1, le=1000, description="clips in maps and strips, at most")
    root: list[Path] = Field([], description="folders of the data sets, if not where they were")
    videos: bool = Field(True, description="decode clips for thumbnails and chunks")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


def report(config: ReportConfig, command: str) -> Path:
    """Write the page; returns its path. UserError for a folder without anything to tell of."""
    files = find_files(config.run_dir)
    if files.empty:
        raise UserError(f"{config.run_dir} holds no run, evaluation, labels curve, feature store, index or bundle")
    seen = look(files, config)
    if seen.library is not None:
        seen = replace(seen, library=replace(seen.library, command=command))
    return write_report(files, seen, config.out or config.run_dir / "report.html", command)


def look(files: RunFiles, config: ReportConfig) -> Seen:
    """What has to be computed or decoded for the page."""
    notes: list[str] = []
    ps = _bundle(files, config)
    stores = [store for path, _ in files.stores if (store := _opened(path, files)) is not None]
    paths = {store.path: video_paths(store, config.root) if config.videos else {} for store in stores}
    library = None
    store = _told(stores)
    if store is not None and len(store):
        try:
            bank = _bank(files, ps, store, notes)
            library = make_library(store, bank, paths[store.path], config.map, config.clips)
        except UserError as fault:
            files.unread[store.path.name] = str(fault)
    if library is not None and store is not None:
        if library.sheet is None and config.videos:
            notes.append(
                f"The videos of {library.title} were not found, so no thumbnails are shown (--root names them)."
            )
        if store.manifest["split"] == "train" and len(library.spaces) > len(store.spaces):
            notes.append(
                "The clips in maps are those that converters were fitted on: translations look better than they are."
            )
    texts: dict[str, str] = {}
    for one in stores:
        texts |= captions(one, paths[one.path])
    found = [clip["id"] for _, search in files.searches for row in search.get("queries", []) for clip in row["found"]]
    sheet = thumbnails([few_frames(Path(clip)) for clip in found[:1000]]) if found and config.videos else None
    looks, counted = (None, None)
    if ps is not None and library is not None and store is not None:
        looks, counted = chunks(ps, [paths[store.path][c] for c in _in_turn(library) if c in paths[store.path]])
    return Seen(library, looks, counted, texts, sheet, notes)


def _opened(path: Path, files: RunFiles) -> FeatureStore | None:
    try:
        return FeatureStore(path)
    except UserError as fault:
        files.unread[path.name] = str(fault)
        return None


def _told(stores: Sequence[FeatureStore]) -> FeatureStore | None:
    """The store to show: one that nothing was trained on before others."""
    order = {"validation": 0, "test": 1, "train": 2}
    return min(stores, key=lambda s: order.get(s.manifest["split"], 3), default=None)


def _in_turn(library: Library) -> list[str]:
    """Ids of clips, one of each class in turn."""
    queues: dict[Any, list[str]] = {}
    for clip in library.clips:
        queues.setdefault(clip.label, []).append(clip.id)
    out = []
    while queues:
        out += [queue.pop(0) for queue in queues.values()]
        queues = {label: queue for label, queue in queues.items() if queue}
    return out


def _bundle(files: RunFiles, config: ReportConfig) -> PolySpace | None:
    for path, _ in files.bundles:
        try:
            return polyspace.load(path.parent, device=config.device)
        except UserError as fault:
            warn(f"{path.parent} can't be loaded: {fault}")
    return None


def _bank(files: RunFiles, ps: PolySpace | None, store: FeatureStore, notes: list[str]) -> ConverterBank | None:
    """The converters of the bundle, or those that an evaluation read, if they were fitted on the store's backbones."""
    if ps is not None and ps.bundle.converters is not None and ps.student == store.student:
        try:
            for name in (ps.student, *ps.bundle.converters.dims):
                check_space(ps.bundle.spaces[name], store.spaces[name], name, Path("the bundle"), str(store.path))
            return copy.deepcopy(ps.bundle.converters).cpu()
        except (UserError, KeyError) as fault:
            notes.append(f"No translated spaces from the bundle: {fault}")
    for _, result in files.evaluations:
        path = Path((result.get("run", {}).get("config") or {}).get("converters", ""))
        if not path.is_file():
            continue
        try:
            bank, about = load_converters(path)
            check_fit(bank, about, store, path)
            return bank
        except UserError as fault:
            notes.append(f"No translated spaces from {path.name}: {fault}")
    return None


def chunks(ps: PolySpace, paths: Sequence[Path]) -> tuple[Looks | None, dict[str, Any] | None]:
    """The student's chunks of some clips, by content and at half as many, and its tokens against motion; nothing for a
    student that does not choose."""
    if not ps.chooses or not paths:
        return None, None
    frames, maps, tokens, motion, fewer = [], [], [], [], []
    with Progress(min(COUNTED, len(paths)), "tokens", "clip") as bar:
        for path in paths[:COUNTED]:
            bar.step()
            try:
                video, one = ps.look(path)
            except (VideoError, IndexError):
                continue
            if len(frames) < SHOWN:
                frames.append(video)
                maps.append(one)
                fewer.append(ps.look(path, num_chunks=max(1, one.tokens // 2))[1])
            tokens.append(one.tokens)
            motion.append(motion_of(video))
    if not frames:
        return None, None
    ways: dict[str, list[ChunkMap]] = {"chunks": maps, "chunks (half)": fewer}
    return Looks(np.stack(frames), ways), tokens_against_motion(tokens, motion, maps[0].owner.size)


def main(argv: Sequence[str]) -> int:
    config = parse(
        ReportConfig,
        argv,
        prog="polyspace report",
        about="One self-contained HTML page of all that lies in a folder: curves, chunks, spaces, scores, costs.",
        example="polyspace report outputs/demo",
    )
    path = report(config, shlex.join(["polyspace", "report", *argv]))
    say(f"{path.stat().st_size / 1e6:.1f} MB")
    say(f"-> {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
