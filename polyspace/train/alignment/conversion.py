"""Vectors of a file through a converter into another file: overlapped, in flat memory, with progress on the disk."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from polyspace.models.spaces.converters import Converter, dims_of
from polyspace.models.spaces.folded import FoldedConverter
from polyspace.utils.array_file import ArrayReader, ArrayWriter
from polyspace.utils.errors import UserError
from polyspace.utils.misc import torch_threads
from polyspace.utils.overlap import AHEAD, overlapped

Span = tuple[int, int]  # rows first … last, without the last


class UnfitSource(UserError):
    """The source can't be converted as it is; what was made of it is of no use."""


def spans(rows: int, block: int, batch: int) -> Iterator[Span]:
    """Batches in order. None crosses the end of a block, so that those behind a block don't depend on a stop there."""
    for start in range(0, rows, block):
        end = min(start + block, rows)
        yield from ((first, min(first + batch, end)) for first in range(start, end, batch))


class Conversion:
    """Every row of `source` through `converter` to the end of `target`, which may hold the first rows already.

    As many threads as torch has convert a batch each, alone: threads that share one product wait for one another as
    soon as one of them has to stand back for reading or writing. So the bits don't depend on their number.

    At the end of each block of `block` rows the file is synced, then `record(rows done, sha256 so far)` is called, both
    in a thread of their own while the next block goes on. With `digest` the source's bytes are summed as they are read,
    the rows that are done too, and another sum is an UnfitSource; so is a row with a number that isn't finite.
    """

    def __init__(
        self,
        source: ArrayReader,
        target: ArrayWriter,
        converter: Converter,
        block: int,
        batch: int,
        record: Callable[[int, str], None],
        digest: str | None = None,
    ) -> None:
        self.source, self.target, self.converter = source, target, FoldedConverter(converter)
        self.block, self.batch, self.record, self.digest = block, batch, record, digest
        self.done = target.done
        d, e = dims_of(converter)
        most = min(batch, block, source.rows)
        self.workers = torch.get_num_threads()
        self._in = [torch.empty(most, d) for _ in range(self.workers + AHEAD)]
        self._out = [torch.empty(most, e) for _ in range(self.workers + AHEAD)]
        self._sum = hashlib.sha256()
        self._syncing: Future[None] = Future()
        self._syncing.set_result(None)

    def run(self, step: Callable[[int], None]) -> None:
        """Do it; `step` is told the rows of each batch that is written. When this returns all is on the disk."""
        if self.digest is not None:
            self._sum.update(self.source.head())
        every = spans(self.source.rows, self.block, self.batch)
        wanted = (s for s in every if self.digest is not None or not self._is_done(s))
        through = overlapped(wanted, self._read, self._work, self._write, self.workers)
        with torch_threads(1), ThreadPoolExecutor(1, "sync") as self._syncer, contextlib.closing(through):
            for span in through:
                if not self._is_done(span):
                    step(span[1] - span[0])
            self._syncing.result()
        if self.digest is not None and self._sum.hexdigest() != self.digest:
            raise UnfitSource(f"{self.source.path} is damaged: its sha256 is not that of its index")

    def _is_done(self, span: Span) -> bool:
        return span[1] <= self.done

    def _read(self, span: Span, slot: int) -> None:
        rows = self._in[slot][: span[1] - span[0]].numpy()
        self.source.read(span[0], rows)
        if self.digest is not None:
            self._sum.update(rows.data.cast("B"))
        with np.errstate(over="ignore", invalid="ignore"):
            sound = np.isfinite(rows.sum())  # one pass; a sum may overflow, so the rows have the last word
        if not sound and len(bad := np.flatnonzero(~np.isfinite(rows).all(1))):
            raise UnfitSource(f"row {span[0] + bad[0]} of {self.source.path} holds numbers that are not finite")

    def _work(self, span: Span, slot: int) -> None:
        if not self._is_done(span):
            rows = span[1] - span[0]
            self.converter.into(self._in[slot][:rows], self._out[slot][:rows])

    def _write(self, span: Span, slot: int) -> None:
        if self._is_done(span):
            return
        self.target.write(span[0], self._out[slot][: span[1] - span[0]].numpy())
        if span[1] % self.block == 0 or span[1] == self.source.rows:
            self._syncing.result()  # one at a time: what isn't on the disk yet stays below two blocks
            self._syncing = self._syncer.submit(self._secure, span[1], self.target.sha256)

    def _secure(self, done: int, sha256: str) -> None:
        self.target.sync()
        self.record(done, sha256)
