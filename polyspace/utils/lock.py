"""One run at a time: a lock that the system lets go of when its process ends, however it ends."""

from pathlib import Path
from typing import IO

from polyspace.utils.errors import UserError


def take_lock(path: Path, taken: str) -> IO[str]:
    """Hold `path` until the file that is returned is closed; UserError with the words `taken` if another run does."""
    file = open(path, "w")  # noqa: SIM115 (the caller closes it)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        file.close()
        raise UserError(taken) from error
    return file
