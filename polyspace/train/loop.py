"""The only training loop: step by step, resumable bit for bit from the last checkpoint."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from polyspace.data.batch import VideoBatch
from polyspace.train.checkpoint import load_checkpoint, restore_rng, save_checkpoint
from polyspace.train.engine import Engine
from polyspace.train.optim import warmup_cosine
from polyspace.train.phase import StepOutput
from polyspace.utils.checkpoint_io import sha256_json
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress, say, warn
from polyspace.utils.trackers import RunLog
from polyspace.utils.world import mean_of


@dataclass(frozen=True)
class FitSettings:
    """How long and how. `batch` is the number of items an update sees, in `accumulate` micro-batches."""

    steps: int
    batch: int
    lr: float
    warmup_ratio: float = 0.05
    accumulate: int = 1
    save_every: int = 500
    log_every: int = 10
    eval_every: int = 0
    seed: int = 0
    max_bad_steps: int = 5


def _parts(num_items: int, settings: FitSettings, visits: bool, step: int) -> list[torch.Tensor]:
    """What all ranks see in each micro-batch of update `step`."""
    chosen = step_visits(num_items, settings.batch, step, settings.seed)
    return list((chosen if visits else chosen % num_items).chunk(settings.accumulate))


def step_visits(num_items: int, batch: int, step: int, seed: int) -> torch.Tensor:
    """The visits of update `step` (batch,), epoch·num_items + item: epochs are seeded permutations laid end to end, so
    any step can be had without replaying those before it."""
    out = []
    position = step * batch
    while len(out) < batch:
        epoch, offset = divmod(position, num_items)
        taken = _epoch_order(num_items, epoch, seed)[offset : offset + batch - len(out)]
        out += (taken + epoch * num_items).tolist()
        position += len(taken)
    return torch.tensor(out)


@lru_cache(maxsize=2)
def _epoch_order(num_items: int, epoch: int, seed: int) -> torch.Tensor:
    return torch.randperm(num_items, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def fit(
    engine: Engine,
    num_items: int,
    load: Callable[[torch.Tensor], VideoBatch | None],
    settings: FitSettings,
    folder: Path,
    *,
    name: str = "train",
    about: dict[str, Any] | None = None,
    prefetch: Callable[[torch.Tensor], None] | None = None,
    visits: bool = False,
    track: Sequence[str] = (),
) -> dict[str, Any]:
    """Train until `settings.steps`, from `folder`'s last checkpoint if there is one; returns the last metrics.

    `load(indices)` gives the items of a micro-batch, None where none of them can be had: such a micro-batch is left
    out, an update of nothing else skipped. `about` is whatever else the run depends on: a checkpoint made
    under other settings is not continued but refused. `prefetch` is told the next update's items. With `visits` both
    are given visits, epoch·num_items + item, instead of items. `track` names where metrics go beside metrics.jsonl.
    SIGTERM and SIGINT save and stop (KeyboardInterrupt).
    """
    _check(num_items, settings, engine.world.data_size, name)
    identity = sha256_json([asdict(settings), num_items, about or {}])
    start, metrics, bad = _resume(engine, folder, identity, name)
    alarmed = False
    choose = partial(_parts, num_items, settings, visits)

    def save(step: int) -> None:
        log.flush()  # first: lines beyond a checkpoint are dropped on resume, missing ones could not be had again
        save_checkpoint(folder, step, engine, {"identity": identity, "metrics": metrics, "bad": bad})

    with (
        RunLog(folder, start, track, identity, asdict(settings) | (about or {})) as log,
        _stop_signals() as stopped,
        Progress(settings.steps, name, "step", initial=start) as bar,
    ):
        for step in range(start, settings.steps):
            engine.phase.train()
            if prefetch is not None and step + 1 < settings.steps:
                prefetch(torch.cat([engine.world.own(part) for part in choose(step + 1)]))
            batches, clips = _micro_batches(choose(step), load, engine, step)
            lr = warmup_cosine(step, settings.steps, settings.lr, settings.warmup_ratio)
            done = step + 1
            output, bad = _update(engine, batches, clips, lr, bad, settings, f"{name}: step {step}", folder)
            last = done == settings.steps
            if output is not None and (done % settings.log_every == 0 or last):
                metrics = {"step": done, "loss": output.loss.item(), "lr": lr}
                metrics |= mean_of({k: v.item() for k, v in output.metrics.items()})
                log.add(metrics)
                alarmed = _warn_once(engine.phase.alarm(metrics), alarmed, f"{name}: step {done}")
                bar.step(0, loss=f"{metrics['loss']:.3f}")
            if settings.eval_every and (done % settings.eval_every == 0 or last):
                scores = engine.evaluate(done)
                metrics = metrics | scores
                log.add({"step": done, "eval": True, **scores})
            bar.step()
            stop = engine.world.any(stopped.is_set(), engine.device)
            if done % settings.save_every == 0 or last or stop:
                save(done)
            if stop and not last:
                raise KeyboardInterrupt
    engine.finish()
    return metrics


def _check(num_items: int, settings: FitSettings, ranks: int, name: str) -> None:
    if num_items < 1:
        raise UserError(f"{name}: no clip to train on")
    if settings.batch % (settings.accumulate * ranks):
        where = f"{settings.accumulate} micro-batches" + (f" on {ranks} ranks" if ranks > 1 else "")
        raise UserError(f"{name}: a batch of {settings.batch} does not divide into {where}")


def _update(
    engine: Engine,
    batches: list[VideoBatch],
    clips: int,
    lr: float,
    bad: int,
    settings: FitSettings,
    where: str,
    folder: Path,
) -> tuple[StepOutput | None, int]:
    """One update, or a warning where there is nothing to learn from or it isn't finite (no output then); its output
    and the bad steps in a row."""
    if not batches:
        warn(f"{where}: none of its {settings.batch} items can be had, update skipped")
        return None, bad
    output, sound = engine.update(batches, lr, clips)
    if not sound:
        return None, _tolerate(bad + 1, settings.max_bad_steps, where, folder)
    engine.phase.after_update(batches[0].place[0])
    return output, 0


def _warn_once(alarm: str | None, alarmed: bool, where: str) -> bool:
    """Say what is alarming when it begins; returns whether it goes on."""
    if alarm is not None and not alarmed:
        warn(f"{where}: {alarm}")
    return alarm is not None


def _tolerate(bad: int, most: int, where: str, folder: Path) -> int:
    """A skipped update is a warning; `most` in a row stop the run. Returns how many in a row."""
    warn(f"{where}: non-finite loss or gradient, update skipped ({bad} in a row)")
    if bad >= most:
        raise UserError(f"{where}: {bad} non-finite steps in a row; last good state: {folder}")
    return bad


def _micro_batches(
    parts: list[torch.Tensor], load: Callable[[torch.Tensor], VideoBatch | None], engine: Engine, step: int
) -> tuple[list[VideoBatch], int]:
    """This rank's part of each micro-batch, and how many clips those of all ranks hold. A micro-batch of which some
    rank can read nothing is left out on all."""
    world, found, first = engine.world, [], 0
    for part in parts:
        own = world.own(part)
        batch = load(own)
        found.append(None if batch is None else replace(batch, place=(step, first + world.data_rank * len(own))))
        first += len(part)
    counts = world.shares([0 if b is None else len(b) for b in found], engine.device)
    whole = (counts > 0).all(0).tolist()
    kept = [b for b, there in zip(found, whole, strict=True) if b is not None and there]
    return kept, int((counts * (counts > 0).all(0)).sum())


def _resume(engine: Engine, folder: Path, identity: str, name: str) -> tuple[int, dict[str, Any], int]:
    state = load_checkpoint(folder, engine)
    if state is None:
        return 0, {}, 0
    if state["identity"] != identity:
        raise UserError(f"{folder} holds a run with other settings or data; remove it or choose another folder")
    restore_rng(state["rng"])
    say(f"{name}: continuing after step {state['step']}")
    return state["step"], state["metrics"], state["bad"]


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the current step is finished and saved."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    old = {s: signal.signal(s, lambda *_: event.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
