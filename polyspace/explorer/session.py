"""What all visitors of the page share (`Explorer`), and what one of them looks at (`Opened`): every panel as HTML."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyspace.api import PolySpace
from polyspace.config import describe
from polyspace.data.records import VIDEO_ENDINGS
from polyspace.data.video import VideoError
from polyspace.explorer import markup, views
from polyspace.explorer.library import Library, is_video
from polyspace.explorer.rollouts import OFFERED, generated_rollout, open_world, pusht_rollout
from polyspace.explorer.sources import Source, is_stand_in, open_sources
from polyspace.utils.errors import UserError

COLUMN, DETAIL, FOUND = 4, 8, 12  # neighbours in a column, in detail, and clips found by words


@dataclass(frozen=True)
class Opened:
    """A clip that was opened with a budget of tokens (None: its content decides)."""

    path: Path
    name: str
    budget: int | None
    view: views.ChunkView


class Explorer:
    """A bundle with what was given beside it. The model runs for one visitor at a time."""

    def __init__(
        self, ps: PolySpace, places: Sequence[Path] = (), clips: Path | None = None, run: Path | None = None
    ) -> None:
        self.ps, self.lock = ps, threading.Lock()
        self.sources, self.notes, ids = open_sources(ps, places)
        self.library = Library(clips, ids)
        self.text_sources, self.no_text = views.text_sources(ps, self.sources)
        self.world, self.no_world = open_world(run, ps.device)

    @property
    def chooses(self) -> bool:
        return self.ps.chooses

    @property
    def stand_ins(self) -> list[str]:
        return [space for space in self.ps.spaces if is_stand_in(self.ps, space)]

    @property
    def tasks(self) -> list[str]:
        """Push-T tasks that can be planned; none for another world."""
        return list(OFFERED) if self.world is not None and self.world.pusht else []

    def source(self, name: str | None) -> Source:
        """The source of that name; UserError for one that isn't there."""
        for source in self.sources:
            if source.name == name:
                return source
        raise UserError(f"There is no such place to search: {name}.")

    def head_html(self) -> str:
        """Whose bundle it is, and what must be known before anything is believed."""
        about = self.ps.bundle.card
        spaces = ", ".join(f"{name} ({dim} dims)" for name, dim in self.ps.spaces.items())
        student = f"Student {about.name} ({about.trained}) on {self.ps.device}. Spaces: {spaces}."
        parts = [markup.line(student, "soft")]
        if self.stand_ins:
            named = ", ".join(self.stand_ins)
            parts.append(
                markup.line(f"Untrained stand-ins (identity), which say nothing about videos: {named}", "mark")
            )
        return markup.box(*parts, *(markup.line(note, "fault") for note in self.notes))

    def open(self, path: Path, name: str, budget: int | None) -> Opened:
        """Look at a clip. UserError in words for the page where it is no video or can't be read."""
        if not is_video(path):
            raise UserError(f"{name} has no video's ending; {', '.join(VIDEO_ENDINGS)} are taken.")
        try:
            with self.lock:
                return Opened(path, name, budget, views.look(self.ps, path, budget))
        except VideoError as error:
            raise UserError(f"{name} can't be read as a video: {error.reason}.") from error
        except IndexError as error:
            raise UserError(f"{name} has too few frames for this bundle's sampling.") from error

    def neighbours_html(self, opened: Opened) -> str:
        """Columns side by side: of each space the first source that serves it."""
        if not self.sources:
            return markup.box(markup.line("No index or feature store was given: start the app with --index."))
        first = {source.space: source for source in reversed(self.sources)}
        chosen = [first[space] for space in self.ps.spaces if space in first]
        with self.lock:
            known = views.vectors(self.ps, opened.path, list(first), opened.budget)
            columns = [views.neighbours(self.ps, known, source, COLUMN, opened.path) for source in chosen]
        return markup.columns_html(columns, self.library)

    def detail_html(self, opened: Opened, name: str | None) -> str:
        """One source, with more clips."""
        if not self.sources:
            return ""
        source = self.source(name)
        with self.lock:
            known = views.vectors(self.ps, opened.path, [source.space], opened.budget)
            column = views.neighbours(self.ps, known, source, DETAIL, opened.path)
        return markup.detail_html(column, self.library)

    def classes_html(self, opened: Opened) -> str:
        with self.lock:
            view = views.classes(self.ps, opened.path, opened.budget)
        told = ""
        if opened.budget is not None and opened.budget != self.ps.bundle.card.num_chunks:
            told = markup.box(markup.line("The heads learned on another number of tokens than this budget's.", "soft"))
        return told + markup.classes_html(view, bool(self.stand_ins))

    def search_html(self, text: str, name: str | None) -> str:
        if not self.text_sources:
            return markup.box(markup.line(self.no_text))
        with self.lock:
            column = views.search(self.ps, text, self.source(name), FOUND)
        return markup.detail_html(column, self.library)

    def rollout_html(self, task: str | None, seed: float | None) -> str:
        if self.world is None:
            return markup.box(markup.line(self.no_world))
        if self.world.pusht and (task not in self.tasks or seed is None or not 0 <= seed < 2**31 or seed != int(seed)):
            raise UserError("Choose a task, and a whole number from 0 on as the start.")
        with self.lock:
            made = pusht_rollout(self.world, str(task), int(seed or 0)) if self.tasks else generated_rollout(self.world)
        picture = markup.image(made.picture, made.sentence)
        return markup.box(markup.line(made.sentence), f'<div class="figure">{picture}</div>')


def told(panel: Callable[[], str]) -> str:
    """A panel's HTML, or a sentence where it fails: the page shows no traceback."""
    try:
        return panel()
    except UserError as error:
        return markup.fault(str(error))
    except Exception as error:
        return markup.fault(describe(error))
