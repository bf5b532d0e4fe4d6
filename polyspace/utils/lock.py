"""One run at a time: a lock that the system lets go of when its process ends, however it ends."""

import contextlib
import os
from pathlib import Path
from typing import IO, Any

from polyspace.utils.errors import UserError

_held: set[IO[Any]] = set()


def _let_go_in_child() -> None:
    """A forked worker's copy of a lock would outlive a killed run."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def hold_file(file: IO[Any] | int) -> bool:
    """Hold an open file until it is closed; False if another does. True too where the system knows no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def take_lock(path: Path, taken: str) -> IO[str]:
    """Hold `path` until the file that is returned is closed; UserError with the words `taken` if another run does."""
    while True:
        try:
            file = open(path, "w")  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        if not hold_file(file):
            file.close()
            raise UserError(taken)
        if _is_at(file, path):
            _held.add(file)
            return file
        file.close()  # the run before removed it in between


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def drop_lock(file: IO[str], path: Path | None = None) -> None:
    """Let go of what `take_lock` gave; with `path` its file goes too."""
    if path is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)
    _held.discard(file)
    file.close()
