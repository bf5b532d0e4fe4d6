"""Where training clips come from: generated ones in memory, or files decoded ahead by worker processes."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.data.extract import Views, decode_clip
from polyspace.data.moving import normalise
from polyspace.data.records import ClipRecord
from polyspace.data.sampling import Sampling
from polyspace.data.transforms import crop_at, normalize, random_crop, resize, resized_shape
from polyspace.data.video import VideoError
from polyspace.utils.checkpoint_io import read_json, write_json
from polyspace.utils.distrib import gather_objects, is_main, rank
from polyspace.utils.errors import UserError
from polyspace.utils.log import warn
from polyspace.utils.plan import Plan
from polyspace.utils.worker import end_broken, end_with_parent, has_lost, result_of

_DEAD = "a data worker died; run the same line again to go on from the last checkpoint"


@runtime_checkable
class ClipSource(Protocol):
    """Clips by visit: epoch·(number of clips) + index, so that a source may show a clip in another way each time and a
    continued run still sees the same. `prefetch` is told which ones come next; `first` gives up to so many readable
    clips, for pictures; `failed` names those that can't be read, and why. A batch of which none can be read is None."""

    failed: dict[str, str]

    def __len__(self) -> int: ...
    def batch(self, visits: Tensor) -> VideoBatch | None: ...
    def prefetch(self, visits: Tensor) -> None: ...
    def first(self, count: int) -> Tensor | None: ...
    def close(self) -> None: ...


class MemoryClips:
    """uint8 clips (N,T,H,W,3) in memory, normalised when asked for; with labels, captions and maps of saliency
    (N,t,h,w) where there are any."""

    def __init__(
        self,
        video: Tensor,
        label: Tensor | None = None,
        text: Sequence[str] | None = None,
        maps: Tensor | None = None,
        scale: tuple[float, float] = (0.45, 0.25),
    ) -> None:
        if text is not None and len(text) != len(video):
            raise UserError(f"{len(text)} captions for {len(video)} clips")
        self.video, self.label, self.text, self.maps, self.scale = video, label, text, maps, scale
        self.failed: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.video)

    def batch(self, visits: Tensor) -> VideoBatch:
        indices = visits % len(self)
        return VideoBatch(
            video=normalise(self.video[indices], *self.scale),
            label=None if self.label is None else self.label[indices],
            text=None if self.text is None else [self.text[i] for i in indices.tolist()],
            maps=None if self.maps is None else self.maps[indices],
        )

    def first(self, count: int) -> Tensor | None:
        return normalise(self.video[:count], *self.scale)

    def prefetch(self, visits: Tensor) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class FileClips:
    """Video files, decoded by `workers` processes one update ahead (0: here, when asked for).

    A clip that can't be read is left out of its batch, reported once, and never replaced by another; more than
    `max_failed` of all clips stop the run. With a file for `notes` that is so across restarts too (beside it lie those
    of other ranks, each of which reads clips of its own). With a `seed`, every
    visit has frames and a crop of its own, a function of seed and visit; without, always the middle ones.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        plan: Plan,
        sampling: Sampling,
        workers: int = 0,
        max_failed: float = 0.05,
        notes: Path | None = None,
        seed: int | None = None,
    ) -> None:
        self.records, self.plan, self.sampling = list(records), plan, sampling
        self.max_failed, self.notes, self.seed = max_failed, notes, seed
        self.failed: dict[str, str] = {}
        if notes is not None:
            for known in (notes, *sorted(notes.parent.glob(f"{notes.stem}.rank*.json"))):
                self.failed |= read_json(known, "list of unreadable clips", dict[str, str]) if known.is_file() else {}
            if not is_main():
                self.notes = notes.with_suffix(f".rank{rank()}.json")
        self._ahead: dict[int, Future[np.ndarray]] = {}
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), ready_worker) if workers else None

    def __len__(self) -> int:
        return len(self.records)

    def prefetch(self, visits: Tensor) -> None:
        if self._pool is None:
            return
        for visit in visits.tolist():
            record = self.records[visit % len(self)]
            if visit not in self._ahead and record.id not in self.failed:
                try:
                    job = self._pool.submit(read_clip, record.path, self.plan, self.sampling, self._draw(visit))
                except BrokenProcessPool as error:
                    end_broken(self._pool)
                    raise UserError(_DEAD) from error
                self._ahead[visit] = job

    def batch(self, visits: Tensor) -> VideoBatch | None:
        self.prefetch(visits)
        clips, labels, text, rows = [], [], [], []
        for row, visit in enumerate(visits.tolist()):
            record = self.records[visit % len(self)]
            clip = self._readable(record, partial(self._get, visit))
            if clip is not None:
                clips.append(clip)
                labels.append(-1 if record.label is None else record.label)
                text.append(record.text or "")
                rows.append(row)
        if not clips:
            return None
        video = normalize(torch.stack(clips), self.plan)
        return VideoBatch(video=video, label=torch.tensor(labels), text=text, rows=tuple(rows))

    def first(self, count: int) -> Tensor | None:
        found: list[Tensor] = []
        spread = [i * len(self.records) // max(count, 1) for i in range(min(count, len(self.records)))]
        order = list(dict.fromkeys([*spread, *range(len(self.records))]))  # lists are often sorted by class
        for record in (self.records[i] for i in order):
            clip = self._readable(record, partial(read_clip, record.path, self.plan, self.sampling))
            if clip is not None:
                found.append(clip)
            if len(found) == count:
                break
        return normalize(torch.stack(found), self.plan) if found else None

    def _readable(self, record: ClipRecord, read: Callable[[], np.ndarray]) -> Tensor | None:
        """The clip as uint8, or None and a note when it can't be read."""
        if record.id in self.failed:
            return None
        try:
            return torch.from_numpy(read())
        except VideoError as error:
            self._note(record, error.reason)
        except IndexError as error:
            self._note(record, str(error).removeprefix(f"{record.path}: "))
        return None

    def _draw(self, visit: int) -> int | None:
        return None if self.seed is None else (self.seed * 1_000_003 + visit) * 2_147_483_629 % 2**63

    def _get(self, visit: int) -> np.ndarray:
        if visit not in self._ahead:  # no workers, or a clip asked for twice in one update
            return read_clip(self.records[visit % len(self)].path, self.plan, self.sampling, self._draw(visit))
        assert self._pool is not None
        return result_of(self._ahead.pop(visit), self._pool, _DEAD)

    def _note(self, record: ClipRecord, reason: str) -> None:
        self.failed[record.id] = reason
        if self.notes is not None:
            write_json(self.notes, self.failed)
        warn(f"{record.id} can't be read and is left out: {reason}")
        if len(self.failed) > self.max_failed * len(self.records):
            raise UserError(
                f"{len(self.failed)} of {len(self.records)} clips can't be read, more than the allowed "
                f"{self.max_failed:.0%}; the last: {record.path}: {reason}"
            )

    def close(self) -> None:
        if self._pool is not None:
            if has_lost(self._pool):
                end_broken(self._pool)
            self._pool.shutdown(wait=False, cancel_futures=True)


def all_failed(*sources: ClipSource) -> dict[str, str]:
    """What no rank could read of these, and why."""
    mine = {k: v for source in sources for k, v in source.failed.items()}
    return {k: v for failed in gather_objects(mine) for k, v in failed.items()}


def read_clip(path: Path, plan: Plan, sampling: Sampling, draw: int | None = None) -> np.ndarray:
    """One clip, resized and cropped as the plan says or, with a `draw`, at random; uint8 (T,H,W,3): a quarter of the
    normalised size, and no file handle, on its way between processes."""
    chosen, _, _ = decode_clip(path, {"clip": plan}, Views(replace(sampling, draw=draw)), need=2)
    video = chosen["clip"][0]
    if draw is not None:
        generator = torch.Generator().manual_seed(draw + 1)
        return random_crop(video, plan.crop, generator, mode=plan.interpolation).contiguous().numpy()
    shape = resized_shape(video.shape[1], video.shape[2], plan.resize)
    return crop_at(resize(video, shape, plan.interpolation), plan.crop).contiguous().numpy()


def ready_worker() -> None:
    """The main process decides when to stop; a worker ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()
