"""An index in the making: all its files lie in a hidden neighbour of `out` and get their names in one step."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from polyspace.data.index import ABOUT, FAISS, FORMAT, IDS, VECTORS, VERSION, Index, load_index, write_faiss
from polyspace.utils.array_file import disk_errors
from polyspace.utils.checkpoint_io import read_json, sha256_file, sync_path, try_writing, write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.lock import drop_lock, take_lock
from polyspace.utils.log import warn

RUN = "run.json"
FILES = {VECTORS, IDS, ABOUT, FAISS, RUN}


class Progress(TypedDict):
    made_from: dict[str, Any]
    source_time: int | None
    rows_done: int
    sha256: str


class IndexWriter:
    """Where an index is made until it is whole.

    `made_from` is all that the bytes depend on: a finished or an unfinished index of the same is taken up, one of
    another is a UserError unless `overwrite`. `source_time` guards an unfinished one against a source that changed.
    """

    def __init__(self, out: Path, made_from: dict[str, Any], overwrite: bool, source_time: int | None = None) -> None:
        self.out, self.made_from, self.overwrite, self.source_time = out.resolve(), made_from, overwrite, source_time
        self.partial = self.out.parent / f".{self.out.name}.partial"
        self.folder = self.partial / "index"
        self._lock: Any = None

    def finished(self) -> Index | None:
        """The index, if it is there and made from the same; UserError if `out` holds anything else."""
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return None
        if not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; an index is a folder")
        if foreign := sorted({p.name for p in self.out.iterdir()} - FILES):
            raise UserError(f"--out {self.out} holds other files ({foreign[0]}); give a folder of its own")
        if self.overwrite:
            return None
        old = load_index(self.out)
        self._compare(old.about["made_from"], f"--out {self.out} holds an index")
        self._sweep()
        return old

    def _sweep(self) -> None:
        """Remove what a run left that was killed behind its last step; not what another run is at work on."""
        if self.partial.is_dir():
            with contextlib.suppress(UserError):
                self._lock = take_lock(self.partial / "lock", "another run")
                self.discard()

    def _compare(self, old: Mapping[str, Any], what: str) -> None:
        differing = sorted(k for k in self.made_from.keys() | old.keys() if old.get(k) != self.made_from.get(k))
        if differing:
            raise UserError(f"{what} made with another {', '.join(differing)}; give --overwrite or another --out")

    def open(self) -> dict[str, Any]:
        """Make the hidden folder and hold it against a second run; returns the progress of a killed run, or {}."""
        if self.out.is_mount():
            raise UserError(f"cannot write {self.out} as a whole: it is where a disk is mounted; give a folder on it")
        try_writing(self.out.parent)
        with disk_errors(self.partial):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(
            self.partial / "lock", f"another run is writing {self.out}; wait for it or choose another --out"
        )
        try:
            return self._progress()
        except UserError:
            self.close()
            raise

    def _progress(self) -> dict[str, Any]:
        path = self.partial / "progress.json"
        try:
            found = read_json(path, "progress of an index", Progress) if path.is_file() else {}
        except UserError as error:
            warn(f"{error}; beginning again")
            found = {}
        if found and not self.overwrite:
            self._compare(found["made_from"], f"{self.partial} holds an unfinished index")
            if found["source_time"] != self.source_time:
                raise UserError(f"the source of {self.partial} was changed since; give --overwrite to begin again")
        same = {"made_from": self.made_from, "source_time": self.source_time}.items() <= found.items()
        if same and (self.folder / VECTORS).is_file():
            return found
        path.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        return {}

    def record(self, rows_done: int, sha256: str) -> None:
        """Write down that this many rows, and the sum of the file so far, are on the disk."""
        state = {"made_from": self.made_from, "source_time": self.source_time}
        write_sealed(self.partial / "progress.json", state | {"rows_done": rows_done, "sha256": sha256})

    def discard(self) -> None:
        """Remove what was made and let go of it."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            drop_lock(self._lock)
            self._lock = None

    def publish(self, about: dict[str, Any], sha256: str, run: dict[str, Any], faiss: bool = False) -> Index:
        """Write `index.json` (and FAISS's file) beside what is there, then give the folder its name."""
        if faiss:
            with disk_errors(self.folder):
                sync_path(write_faiss(self.folder, about["rows"], about["dim"], about["metric"]))
        sums = {VECTORS: sha256}
        sums |= {name: sha256_file(self.folder / name) for name in (IDS, FAISS) if (self.folder / name).is_file()}
        write_sealed(self.folder / RUN, run)
        head = {"format": FORMAT, "format_version": VERSION}
        write_sealed(self.folder / ABOUT, head | about | {"made_from": self.made_from, "sha256": sums})
        old = self.partial / "old"
        with disk_errors(self.out):
            if self.out.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(self.out, old)
            os.replace(self.folder, self.out)
            sync_path(self.out.parent)
        self.discard()
        if self.partial.exists():
            warn(f"{self.partial} could not be removed; it is of no more use")
        return load_index(self.out)
