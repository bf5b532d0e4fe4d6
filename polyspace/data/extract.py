"""One batch of clips to features: decode once, prepare per backbone, forward. Runs in worker processes.

On a CPU every worker does all three with one thread: two workers keep two cores busy without waiting for each other.
On a GPU workers decode and prepare, and the main process runs the forwards.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polyspace.data.sampling import Sampling
from polyspace.data.store_writer import ClipResult, StoreWriter
from polyspace.data.transforms import prepare
from polyspace.data.video import VideoError, VideoReader
from polyspace.utils.errors import UserError
from polyspace.utils.plan import Plan
from polyspace.utils.worker import end_with_parent

Forward = Callable[[Tensor], dict[str, Tensor]]  # video (B,T,H,W,3) -> {"": clip (B,D), ".tokens": (B,N,D)}


@dataclass(frozen=True)
class Views:
    """How a clip is looked at: which frames, and how many windows in time and crops in space are averaged."""

    sampling: Sampling
    clips: int = 1
    crops: int = 1
    min_frames: int = 2


@dataclass
class Decoded:
    """A batch ready for the forwards: inputs (views·clips, T, H, W, 3) per space for the readable clips."""

    index: int
    results: list[ClipResult]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)  # where no store is written
    seconds: dict[str, float] = field(default_factory=dict)
    frames_decoded: int = 0
    fault: str | None = None  # a UserError of the worker: exceptions would cross processes as tracebacks


def decode_clip(
    path: Path, plans: Mapping[str, Plan], views: Views, need: int
) -> tuple[dict[str, list[Tensor]], ClipResult, int]:
    """Decode a clip once and give each space its frames: {space: one uint8 (T,H,W,3) per window}.

    `need` is the fewest frames that a damaged file must still give.
    """
    with VideoReader(path) as video:
        picks: dict[str, list[list[int]]] = {}

        def choose(num_frames: int) -> Sequence[int]:
            for space, plan in plans.items():
                picks[space] = views.sampling.pick(num_frames, plan.frames, video.fps, views.clips)
            return sorted({i for windows in picks.values() for window in windows for i in window})

        indices, frames = video.sample(choose)
        count = video.num_frames
        choose(count)
        place = {index: row for row, index in enumerate(indices)}
        if count < views.min_frames:
            raise VideoError(path, f"only {count} of at least {views.min_frames} frames can be decoded")
        if video.damage and count < need:
            raise VideoError(path, f"{video.damage}, {need} are needed")
        chosen = {s: [frames[[place[i] for i in window]] for window in windows] for s, windows in picks.items()}
        return chosen, ClipResult(count, note=video.damage), video.decoded


class BatchDataset(Dataset):
    """Item b is batch b of the clip list: decoded and prepared, and where `forwards` is given also computed."""

    def __init__(
        self,
        paths: Sequence[Path],
        plans: Mapping[str, Plan],
        views: Views,
        need: int,
        sink: StoreWriter | int,
        forwards: Mapping[str, Forward] | None,
    ) -> None:
        """`sink`: the writer that takes each batch, or a batch size where features are handed on instead."""
        self.paths, self.plans, self.views, self.need = list(paths), dict(plans), views, need
        self.writer, self.forwards = (None, forwards) if isinstance(sink, int) else (sink, forwards)
        self.batch = sink if isinstance(sink, int) else sink.batch

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch)

    def __getitem__(self, index: int) -> Decoded:
        try:
            batch = self.decode(index)
            if self.forwards is not None:
                compute(batch, self.forwards, self.views, self.writer)
        except UserError as error:
            return Decoded(index, [], fault=str(error))
        return batch

    def decode(self, index: int) -> Decoded:
        size = self.batch
        batch = Decoded(index, [], seconds={"decode": 0.0, "prepare": 0.0})
        ready: dict[str, list[Tensor]] = {space: [] for space in self.plans}
        for path in self.paths[index * size : (index + 1) * size]:
            start = time.thread_time()
            try:
                chosen, result, decoded = decode_clip(path, self.plans, self.views, self.need)
            except VideoError as error:
                batch.results.append(ClipResult(0, error.reason))
                continue
            except IndexError as error:
                batch.results.append(ClipResult(0, str(error).removeprefix(f"{path}: ")))
                continue
            finally:
                batch.seconds["decode"] += time.thread_time() - start
            start = time.thread_time()
            for space, windows in chosen.items():
                ready[space] += [prepare(window, self.plans[space], self.views.crops) for window in windows]
            batch.seconds["prepare"] += time.thread_time() - start
            batch.results.append(result)
            batch.frames_decoded += decoded
        batch.inputs = {space: torch.cat(clips) for space, clips in ready.items() if clips}
        return batch


@torch.inference_mode()
def compute(batch: Decoded, forwards: Mapping[str, Forward], views: Views, writer: StoreWriter | None) -> None:
    """Run every forward, average over views, write the part or leave it in `features`; the inputs are dropped."""
    start = time.thread_time()
    good = sum(r.reason is None for r in batch.results)
    features = {}
    for space, video in batch.inputs.items():
        for key, value in forwards[space](video).items():
            features[space + key] = value.unflatten(0, (good, -1)).mean(1)
    batch.inputs = {}
    for space, value in features.items():
        bad = (~torch.isfinite(value).flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"{space} gave non-finite features in batch {batch.index}; its weights or inputs are unsound"
            )
    batch.seconds["forward"] = time.thread_time() - start
    if writer is None:
        batch.features = features
    else:
        writer.write_part(batch.index, features, batch.results)


def _ready_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    end_with_parent()  # what an orphan writes would come behind the run that took its place


def run_batches(dataset: BatchDataset, batches: Sequence[int], workers: int) -> Iterator[Decoded]:
    """Yield the given batches in order, made ahead by `workers` processes (0: by this one)."""
    context = None
    if workers:
        context = "fork" if dataset.forwards is not None and hasattr(os, "fork") else None
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=list(batches),
        num_workers=min(workers, max(1, len(batches))) if workers else 0,
        worker_init_fn=_ready_worker,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=context,
    )
    try:
        for batch in loader:
            if batch.fault is not None:
                raise UserError(batch.fault)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
            raise
        raise UserError("a data worker died; finished batches are kept, run the same line again to go on") from error
