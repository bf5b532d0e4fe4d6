"""Folders that one run at a time writes, and files that are copied into them."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from polyspace.utils.checkpoint_io import LEFT_OVER, atomic_file, try_writing
from polyspace.utils.lock import drop_lock, hold_file, take_lock

LOCK = ".lock"


@contextlib.contextmanager
def sole_writer(folder: Path, name: str = LOCK, deep: int = 1) -> Iterator[None]:
    """Hold `folder` (made if it isn't there) against a second run, after removing the temporary files that killed runs
    have left in it and in folders up to `deep` below. UserError if another run holds it, or it can't be written."""
    try_writing(folder)
    lock = take_lock(folder / name, f"another run is writing {folder}; wait for it or choose another folder")
    try:
        clear_left_over(folder, deep)
        yield
    finally:
        drop_lock(lock, folder / name)


def clear_left_over(folder: Path, deep: int = 0) -> None:
    """Remove the temporary files that killed runs have left in `folder` and in folders up to `deep` below it."""
    for level in range(deep + 1):
        for stale in folder.glob("/".join(["*"] * level + [f".*{LEFT_OVER}"])):
            _remove_unheld(stale)


def _remove_unheld(stale: Path) -> None:
    """A temporary file goes unless a run that lives is writing it."""
    with contextlib.suppress(OSError), open(stale, "rb") as file:
        if hold_file(file):
            stale.unlink()


def copy_file(source: Path, target: Path) -> None:
    """The bytes of `source` as `target`, whole or not at all. UserError names the target where it can't be written."""
    with open(source, "rb") as file, atomic_file(target) as out:
        shutil.copyfileobj(file, out, 1 << 20)
