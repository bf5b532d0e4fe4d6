"""Long files written around the system's page cache: a third of the processor's work for the same bytes."""

import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np

BLOCK = 4096  # what the disk wants in one piece, and where
BUFFER = 4 << 20


class DirectFile:
    """Bytes appended to a file at `path` from byte `at` on, which is there already.

    >>> with DirectFile(path, 0) as file: file.write(b"many bytes")

    Where the system knows no direct writes, or with `direct` False, they are ordinary ones. `write` and `sync` may run
    in two threads; what a `sync` finds written is on the disk when it returns. Errors are the system's own.
    """

    def __init__(self, path: Path, at: int, direct: bool = True) -> None:
        self._plain = os.open(path, os.O_RDWR)
        self._direct: int | None = None
        self._view = memoryview(mmap.mmap(-1, BUFFER))  # begins on a page
        self._array = np.frombuffer(self._view, np.uint8)  # the same bytes; copied without holding up other threads
        self._start = at - at % BLOCK  # the view's place in the file
        self._held = at - self._start
        self._lock = threading.Lock()
        try:
            self._view[: self._held] = os.pread(self._plain, self._held, self._start)
            if direct and hasattr(os, "O_DIRECT"):
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system knows no direct writes
                self.close()
                raise

    def write(self, data: memoryview) -> None:
        with self._lock:
            while len(data):
                taken = min(len(data), BUFFER - self._held)
                np.copyto(self._array[self._held : self._held + taken], np.frombuffer(data[:taken], np.uint8))
                self._held += taken
                data = data[taken:]
                if self._held == BUFFER:
                    self._put(BUFFER)

    def _put(self, whole: int) -> None:
        """The view's first `whole` bytes, a number of blocks, to the file; what is behind them moves to the front."""
        done = 0
        while done < whole:
            done += self._write_some(self._view[done:whole], self._start + done)
        rest = self._held - whole
        self._view[:rest] = bytes(self._view[whole : self._held])
        self._start += whole
        self._held = rest

    def _write_some(self, part: memoryview, place: int) -> int:
        if self._direct is not None and not place % BLOCK:
            try:
                return os.pwrite(self._direct, part, place)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)
                self._direct = None
        return os.pwrite(self._plain, part, place)

    def flush(self) -> None:
        """All that is written so far to the file."""
        with self._lock:
            self._put(self._held - self._held % BLOCK)
            done = 0
            while done < self._held:
                done += os.pwrite(self._plain, self._view[done : self._held], self._start + done)

    def sync(self) -> None:
        """All that is written so far to the disk."""
        self.flush()
        os.fsync(self._plain)

    def close(self) -> None:
        """Give the file back. What was not flushed is lost."""
        for handle in (self._plain, self._direct):
            if handle is not None:
                os.close(handle)
        self._direct = None

    def __enter__(self) -> "DirectFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()
