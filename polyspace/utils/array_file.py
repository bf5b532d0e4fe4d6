"""Tables of vectors as plain NumPy files, larger than memory: read and written by ranges of rows.

Reads go into buffers that the caller owns. A memory map would do the same, but its pages count as the process's own
memory until the system takes them back.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from polyspace.utils.direct_file import DirectFile
from polyspace.utils.errors import UserError
from polyspace.utils.reading import FAULTS

FLOAT32, FLOAT16 = np.dtype("<f4"), np.dtype("<f2")
CHUNK = 8 << 20
DIRECT_FROM = 64 << 20  # bytes of a file; what is smaller may as well stay in the page cache


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full, read-only or failing disk is a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class ArrayReader:
    """A .npy file of (n,d) float32 or float16 in C order; anything else is a UserError. Not for use from two threads.

    >>> with ArrayReader(path) as array: array.read(0, buffer)  # the first len(buffer) rows, as float32
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist")
        try:
            found = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (EOFError, SyntaxError, *FAULTS) as error:
            raise UserError(f"{path} is not a whole .npy file of vectors") from error
        if not isinstance(found, np.memmap) or found.ndim != 2 or found.dtype not in (FLOAT32, FLOAT16):
            held = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise UserError(f"{path} holds {held}; vectors are float32 or float16 of shape (n, d)")
        if not found.flags.c_contiguous:
            raise UserError(f"{path} is in Fortran order; save it again through np.ascontiguousarray")
        self.rows, self.dim = found.shape
        if not self.rows or not self.dim:
            raise UserError(f"{path} holds no vectors: its shape is {found.shape}")
        self.dtype, self.offset = found.dtype, int(found.offset)
        self._file = open(self.path, "rb")  # noqa: SIM115 (held until close)
        self._narrow = np.empty((0, self.dim), FLOAT16)

    def read(self, first: int, out: np.ndarray) -> None:
        """Rows first … first + len(out) into `out` (rows,d) float32."""
        raw = out
        if self.dtype == FLOAT16:
            if len(self._narrow) < len(out):
                self._narrow = np.empty((len(out), self.dim), FLOAT16)
            raw = self._narrow[: len(out)]
        self._file.seek(self.offset + first * self.dim * self.dtype.itemsize)
        if self._file.readinto(raw.data.cast("B")) != raw.nbytes:
            raise UserError(f"{self.path} ended early: it was cut while it was read")
        if raw is not out:
            np.copyto(out, raw)

    def head(self) -> bytes:
        """The file's bytes before the first row."""
        self._file.seek(0)
        return self._file.read(self.offset)

    def fingerprint(self) -> list[object]:
        """What tells the file from another without reading it all: shape, type, and the sums of its two ends."""
        size, ends = self.path.stat().st_size, []
        with open(self.path, "rb") as file:
            for place in (0, max(0, size - (1 << 20))):
                file.seek(place)
                ends.append(hashlib.sha256(file.read(1 << 20)).hexdigest())
        return [self.rows, self.dim, self.dtype.str, size, *ends]

    def __enter__(self) -> "ArrayReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class ArrayWriter:
    """A .npy file of (n,d) float32 that takes rows in order, at its full size from the first, with its sha256 kept.

    With `done` rows the file goes on behind them: they are read once for the sum.
    """

    def __init__(self, path: Path, rows: int, dim: int, done: int = 0) -> None:
        self.path, self.done = Path(path), done
        self._digest = hashlib.sha256()
        self._summer = ThreadPoolExecutor(1, "sum")
        with disk_errors(path), open(path, "r+b" if done else "w+b", buffering=0) as file:
            if not done:
                _begin(file, rows, dim)
            end = self._read_done(file, dim)
            self._file = DirectFile(self.path, end, direct=rows * dim * FLOAT32.itemsize >= DIRECT_FROM)

    def _read_done(self, file: io.FileIO, dim: int) -> int:
        """Sum the head and the rows that are there; returns where they end."""
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        end = left = file.tell() + self.done * dim * FLOAT32.itemsize
        file.seek(0)
        while left and (part := file.read(min(left, CHUNK))):
            self._digest.update(part)
            left -= len(part)
        if left:
            raise UserError(f"{self.path} is shorter than the {self.done} rows that it should hold")
        return end

    def write(self, first: int, rows: np.ndarray) -> None:
        """Rows first … first + len(rows), which must be the next ones: behind a write that failed none succeeds."""
        assert first == self.done, f"rows from {first} come after row {self.done}"
        view = np.ascontiguousarray(rows, FLOAT32).data.cast("B")
        summed = self._summer.submit(self._digest.update, view)  # meanwhile the disk works
        with disk_errors(self.path):
            self._file.write(view)
        summed.result()
        self.done += len(rows)

    def sync(self) -> None:
        """What is written is on the disk when this returns. May run in another thread than `write`."""
        with disk_errors(self.path):
            self._file.sync()

    @property
    def sha256(self) -> str:
        """Of the header and the rows so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Give the file back. What no `sync` has seen is lost."""
        self._summer.shutdown()
        self._file.close()

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self._summer.shutdown()
        with disk_errors(self.path):
            self._file.__exit__(*raised)


def _begin(file: io.FileIO, rows: int, dim: int) -> None:
    """The head, and room for all rows: a disk that is too small is found now, not after an hour."""
    head = {"descr": FLOAT32.str, "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, head)
    size = file.tell() + rows * dim * FLOAT32.itemsize
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
    file.seek(0)
