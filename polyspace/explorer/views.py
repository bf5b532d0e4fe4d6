"""What is shown of a clip, as pictures, rows and sentences: from a bundle and a file, without a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyspace.api import LANGUAGE, PolySpace
from polyspace.data.index import Index
from polyspace.explorer.library import Picture
from polyspace.explorer.sources import Source
from polyspace.report.chunk_drawing import draw_chunks, palette, spread
from polyspace.utils.chunk_map import ChunkMap
from polyspace.utils.errors import UserError

LARGE, SMALL = 400, 104  # pixels a side, at least
LONGEST_TEXT = 500  # characters of a question


@dataclass(frozen=True)
class ChunkView:
    """A clip's frames (T,H,W,3) as the student sees them, and which token each cell (t,h,w) belongs to."""

    frames: NDArray[np.uint8]
    chunks: ChunkMap

    @property
    def steps(self) -> int:
        return self.chunks.owner.shape[0]

    @property
    def every(self) -> int:
        """Frames a step of cells."""
        return len(self.frames) // self.steps

    def sentence(self) -> str:
        t, h, w = self.chunks.owner.shape
        cells, tokens = t * h * w, self.chunks.tokens
        unit = f"{self.every} frames × {self.frames.shape[1] // h} × {self.frames.shape[2] // w} pixels"
        fewer = f", {cells / tokens:.1f} times fewer" if tokens < cells else ""
        return f"{tokens} tokens for {cells} cells{fewer}. {t} steps of {h} × {w} cells; a cell is {unit}."


def look(ps: PolySpace, clip: Path, budget: int | None = None) -> ChunkView:
    """UserError or VideoError for what can't be read, in words for the page."""
    return ChunkView(*ps.look(clip, budget))


def step_pictures(view: ChunkView, step: int, side: int = LARGE) -> tuple[Picture, Picture]:
    """The first frame of a step, plain and with its chunks drawn, enlarged to `side` pixels or more."""
    frame = view.frames[step * view.every]
    scale = max(1, -(-side // min(frame.shape[:2])))
    plain = spread(frame, frame.shape[0] * scale, frame.shape[1] * scale)
    return plain, draw_chunks(plain, view.chunks.owner[step], palette(view.chunks.tokens))


def strip(view: ChunkView) -> list[Picture]:
    """Every step small, with its chunks."""
    return [step_pictures(view, step, SMALL)[1] for step in range(view.steps)]


def chunk_rows(view: ChunkView, step: int) -> list[dict[str, Any]]:
    """The chunks of a step, largest here first: number, cells here, size, centroid, first and last step, colour."""
    owner, chunks = view.chunks.owner, view.chunks
    numbers, here = np.unique(owner[step], return_counts=True)
    colours = (palette(chunks.tokens) * 255).round().astype(int)
    rows = []
    for number, cells in sorted(zip(numbers.tolist(), here.tolist(), strict=True), key=lambda pair: (-pair[1], pair)):
        when = np.flatnonzero((owner == number).any((1, 2)))
        row = {"chunk": number, "cells_here": cells, "size": float(chunks.sizes[number])}
        row |= {"centroid": tuple(chunks.centroids[number].tolist()), "steps": (int(when[0]), int(when[-1]))}
        rows.append(row | {"colour": tuple(colours[number].tolist())})
    return rows


@dataclass(frozen=True)
class Found:
    """A neighbour: `itself` where it is the very file that was asked with."""

    id: str
    score: float
    itself: bool = False


@dataclass(frozen=True)
class Column:
    """The neighbours in one source, or a sentence why there are none."""

    source: Source
    found: list[Found]
    fault: str = ""


def vectors(ps: PolySpace, clip: Path, spaces: Sequence[str], budget: int | None = None) -> dict[str, Tensor]:
    """The clip in each of these spaces; the student runs once for its own and all that is translated from it."""
    out: dict[str, Tensor] = {}
    if set(spaces) - {LANGUAGE}:
        own = ps.encode(clip, num_chunks=budget)
        out = {space: own if space == ps.student else ps.translate(own, space) for space in spaces if space != LANGUAGE}
    if LANGUAGE in spaces:
        out[LANGUAGE] = ps.encode(clip, LANGUAGE, num_chunks=budget)
    return out


def neighbours(ps: PolySpace, known: dict[str, Tensor], source: Source, k: int, clip: Path | None = None) -> Column:
    """The k clips of a source most like the vector of its space; `clip` is what was asked with."""
    try:
        found = ps.nearest(known[source.space], source.store, source.space, k)
    except UserError as error:
        return Column(source, [], str(error))
    same = None if clip is None else clip.resolve()
    return Column(source, [Found(n.id, n.score, same is not None and _is(n.id, same)) for n in found])


def _is(name: str, path: Path) -> bool:
    """Whether an id means this file: by its path, or, without one, by its name."""
    given = Path(name)
    return given.resolve() == path or (given.name == name and given.stem == path.stem)


@dataclass(frozen=True)
class ClassView:
    """Probabilities of the classes by head, and in a sentence which head held-out clips chose."""

    heads: dict[str, dict[str, float]]
    chosen: str | None
    sentence: str


def classes(ps: PolySpace, clip: Path, budget: int | None = None) -> ClassView:
    """Every head that the bundle has: fusion and student only, and the probe. UserError where there is none."""
    names = ["fusion", "student"] if ps.bundle.heads is not None else []
    names += ["probe"] if "probe" in ps.bundle.folders else []
    if not names:
        raise UserError(
            "This bundle has no classifier; polyspace train-fusion, or the probe phase of polyspace train, makes one."
        )
    heads = {}
    for name in names:
        rows: Any = ps.classify(clip, k=1 << 20, head=name, num_chunks=budget)
        heads[name] = dict(rows)
    choice = ps.bundle.choice
    if ps.bundle.heads is None:
        return ClassView(heads, "probe", "The probe is the only head here.")
    chosen = "fusion" if choice["head"] == "fusion" else "student"
    low, high = (100 * edge for edge in choice["ci"])
    why = f"top-1 of fusion minus student only: {100 * choice['top1']:+.1f} points, 95 % interval {low:+.1f} to"
    return ClassView(
        heads, chosen, f"Held-out clips chose the head “{choice['head']}” ({why} {high:+.1f}).".replace(" -", " −")
    )


def text_sources(ps: PolySpace, sources: Sequence[Source]) -> tuple[list[Source], str]:
    """Indexes that can be asked with words, or a sentence why there are none."""
    if LANGUAGE not in ps.spaces:
        return [], "This bundle reads no text: bundle a run of polyspace train that has the language phase."
    found = [source for source in sources if source.space == LANGUAGE and isinstance(source.store, Index)]
    if not found:
        made = "polyspace index --bundle … --videos … --space language --out …"
        return [], f"No index of the space language was given. {made} makes one; then start the app with --index."
    return found, ""


def search(ps: PolySpace, text: str, source: Source, k: int) -> Column:
    """The clips most like a sentence. UserError for one that is empty or too long."""
    asked = text.strip()
    if not asked:
        raise UserError("Type what to look for.")
    if len(asked) > LONGEST_TEXT:
        raise UserError(f"The sentence has {len(asked)} characters; {LONGEST_TEXT} are the most.")
    with torch.no_grad():
        return neighbours(ps, {LANGUAGE: ps.embed_text(asked)}, source, k)
