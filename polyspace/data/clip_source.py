"""Where training clips come from: generated ones in memory, or files decoded ahead by worker processes."""

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.data.extract import Views, decode_clip
from polyspace.data.moving import normalise
from polyspace.data.records import ClipRecord
from polyspace.data.sampling import Sampling
from polyspace.data.transforms import prepare
from polyspace.data.video import VideoError
from polyspace.utils.errors import UserError
from polyspace.utils.log import warn
from polyspace.utils.plan import Plan


@runtime_checkable
class ClipSource(Protocol):
    """Clips by index. `prefetch` is told which ones come next."""

    def __len__(self) -> int: ...
    def batch(self, indices: Tensor) -> VideoBatch: ...
    def prefetch(self, indices: Tensor) -> None: ...


class MemoryClips:
    """uint8 clips (N,T,H,W,3) in memory, normalised when asked for."""

    def __init__(self, video: Tensor, label: Tensor | None = None) -> None:
        self.video, self.label = video, label

    def __len__(self) -> int:
        return len(self.video)

    def batch(self, indices: Tensor) -> VideoBatch:
        return VideoBatch(
            video=normalise(self.video[indices]), label=None if self.label is None else self.label[indices]
        )

    def prefetch(self, indices: Tensor) -> None:
        """Nothing to do."""


class FileClips:
    """Video files, decoded by `workers` processes one update ahead (0: here, when asked for).

    A clip that can't be read is left out of its batch, reported once, and never replaced by another; more than
    `max_failed` of all clips stop the run.
    """

    def __init__(
        self, records: Sequence[ClipRecord], plan: Plan, sampling: Sampling, workers: int = 0, max_failed: float = 0.05
    ) -> None:
        self.records, self.plan, self.sampling = list(records), plan, sampling
        self.max_failed = max_failed
        self.failed: dict[str, str] = {}
        self._ahead: dict[int, Future[Tensor]] = {}
        self._pool = (
            ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) if workers else None
        )

    def __len__(self) -> int:
        return len(self.records)

    def prefetch(self, indices: Tensor) -> None:
        if self._pool is None:
            return
        for index in indices.tolist():
            if index not in self._ahead and self.records[index].id not in self.failed:
                self._ahead[index] = self._pool.submit(read_clip, self.records[index].path, self.plan, self.sampling)

    def batch(self, indices: Tensor) -> VideoBatch:
        self.prefetch(indices)
        clips, labels = [], []
        for index in indices.tolist():
            record = self.records[index]
            if record.id in self.failed:
                continue
            try:
                clips.append(self._get(index))
                labels.append(-1 if record.label is None else record.label)
            except VideoError as error:
                self._note(record, error.reason)
        if not clips:
            raise UserError(f"no clip of a whole batch can be read, e.g. {next(iter(self.failed.items()))}")
        return VideoBatch(video=torch.stack(clips), label=torch.tensor(labels))

    def _get(self, index: int) -> Tensor:
        if self._pool is None:
            return read_clip(self.records[index].path, self.plan, self.sampling)
        try:
            return self._ahead.pop(index).result() if index in self._ahead else self._again(index)
        except BrokenProcessPool as error:
            raise UserError("a data worker died; run the same line again to go on from the last checkpoint") from error

    def _again(self, index: int) -> Tensor:
        """A clip asked for twice in a row (fewer clips than a batch)."""
        return read_clip(self.records[index].path, self.plan, self.sampling)

    def _note(self, record: ClipRecord, reason: str) -> None:
        self.failed[record.id] = reason
        warn(f"{record.id} can't be read and is left out: {reason}")
        if len(self.failed) > self.max_failed * len(self.records):
            raise UserError(
                f"{len(self.failed)} of {len(self.records)} clips can't be read, more than the allowed "
                f"{self.max_failed:.0%}; the last: {record.path}: {reason}"
            )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def read_clip(path: Path, plan: Plan, sampling: Sampling) -> Tensor:
    """One clip as the plan wants it, float32 (T,H,W,3)."""
    chosen, _, _ = decode_clip(path, {"clip": plan}, Views(sampling), need=2)
    return prepare(chosen["clip"][0], plan)[0]
