"""What a run logs, and where it goes: metrics.jsonl always, TensorBoard and Weights & Biases where they are wanted.

A tracker that fails is given up with one warning: training depends on none of them.
"""

import contextlib
import importlib.util
import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import TypedDict

from polyspace.utils.checkpoint_io import write_text
from polyspace.utils.distrib import is_main
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import warn
from polyspace.utils.reading import read_json_lines

METRICS, EVENTS = "metrics.jsonl", "tensorboard"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told at its start: `start` is the last step that stands, `history` the lines up to it."""

    folder: Path
    start: int
    history: Sequence[dict[str, Any]]
    identity: str
    config: dict[str, Any]


class Tracker(Protocol):
    def add(self, step: int, values: dict[str, float]) -> None: ...

    def flush(self) -> None:
        """All that was added is where a killed process cannot lose it."""

    def close(self, sound: bool) -> None:
        """`sound`: the run came to its end."""


class TensorBoard:
    """Events in `<folder>/tensorboard`. Of an earlier process those after `start` are marked as void, which readers
    obey; a folder without events is given the history first."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = run.folder / EVENTS
        seconds = _make_older(place)
        self._writer = SummaryWriter(str(place), purge_step=run.start + 1, flush_secs=30)
        for line in () if seconds else run.history:
            self.add(line["step"], scalars(line))

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, sound: bool) -> None:
        self._writer.close()


def _make_older(place: Path) -> bool:
    """Events are read in the order of their files' names, which begin with the second they were made in: those that are
    there get seconds before now, in the order they have, where the clock has gone back. Whether there are any."""
    there = sorted(place.glob("events.out.tfevents.*"))
    newest = int(there[-1].name.split(".")[3]) if there else 0
    while (now := int(time.time())) == newest:
        time.sleep(0.05)
    if newest > now:
        for path, second in zip(there, range(now - len(there), now), strict=True):
            _, _, _, _, rest = path.name.split(".", 4)
            path.replace(place / f"events.out.tfevents.{second:010d}.{rest}")
    return bool(there)


class WandB:
    """A run of the project `polyspace`, named by the last two parts of its folder. Its id is kept in the folder, so
    that a killed run goes on as one (steps that W&B has already it leaves out) and a new one is another. Offline mode
    is W&B's own WANDB_MODE=offline."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        place, kept = run.folder.resolve(), run.folder / "wandb_id"
        if not run.start or not kept.is_file():
            write_text(kept, uuid.uuid4().hex[:16])
        self._run = wandb.init(
            project="polyspace",
            name=f"{place.parent.name}/{place.name}",
            id=kept.read_text(),
            resume="allow",
            config=run.config,
        )

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self, sound: bool) -> None:
        self._run.finish(exit_code=0 if sound else 1)


# name, which is also that of the package and of our extra -> what opens it
TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """`--track` as names of trackers: `auto` is TensorBoard where it is installed, `none` (alone) nothing. UserError
    for an unknown one, and for one that is asked for by name and not installed."""
    if "none" in names and len(names) > 1:
        raise UserError("none goes with no other tracker")
    chosen = []
    for name in names:
        if name not in (*TRACKERS, "auto", "none"):
            raise UserError(f"no tracker '{name}'{did_you_mean(name, [*TRACKERS, 'auto', 'none'])}")
        if name in TRACKERS and not _installed(name):
            raise UserError(f"{name} is not installed: pip install 'polyspace[{name}]'")
        if name == "auto":
            chosen += ["tensorboard"] if _installed("tensorboard") else []
        elif name != "none":
            chosen.append(name)
    return tuple(dict.fromkeys(chosen))


def _installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    found = importlib.util.find_spec(name)
    # a folder of that name in the working directory, such as W&B's own, is found too, but has no origin
    return found is not None and found.origin is not None


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, named `train/…` or `eval/…`."""
    group = "eval" if line.get("eval") else "train"
    numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "step"}
    return {f"{group}/{name}": float(value) for name, value in numbers.items()}


class Line(TypedDict):
    step: int


class RunLog:
    """metrics.jsonl of a training run in `folder`, and its trackers; other ranks write nothing.

    A run that goes on from the checkpoint of step `start` drops what was logged after it. `track` as of `choose`;
    `identity` and `config` say what the training depends on.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        track: Sequence[str] = (),
        identity: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.path = folder / METRICS
        self.lines: list[str] = []
        if start and self.path.is_file():
            lines = read_json_lines(self.path, "metrics", Line)
            self.lines = [json.dumps(line) for line in lines if line["step"] <= start]
        self._trackers: dict[str, Tracker] = {}
        if is_main():
            run = TrackedRun(folder, start, [json.loads(x) for x in self.lines], identity, config or {})
            for name in track:
                with self._given_up(name):
                    self._trackers[name] = TRACKERS[name](run)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(json.dumps(line))
        for name, tracker in list(self._trackers.items()):
            with self._given_up(name):
                tracker.add(line["step"], scalars(line))

    def flush(self) -> None:
        if is_main():
            write_text(self.path, "".join(line + "\n" for line in self.lines))
        for name, tracker in list(self._trackers.items()):
            with self._given_up(name):
                tracker.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._given_up(name):
                tracker.close(kind is None)

    @contextlib.contextmanager
    def _given_up(self, name: str) -> Iterator[None]:
        """A failure within is a warning, and the end of this tracker."""
        try:
            yield
        except Exception as error:  # whatever a tracker does, training goes on
            first = next(iter(str(error).splitlines()), "")
            warn(f"{name} is given up, training goes on ({type(error).__name__}: {first})")
            failed = self._trackers.pop(name, None)
            if failed is not None:
                with contextlib.suppress(Exception):
                    failed.close(False)


def keep_log(folder: Path, place: Path) -> None:
    """What is left of a finished run: its metrics.jsonl and its events, in `place`; `folder` goes."""
    write_text(place / METRICS, (folder / METRICS).read_text())
    shutil.rmtree(place / EVENTS, ignore_errors=True)  # of an earlier run, as the metrics were
    if (folder / EVENTS).is_dir():
        (folder / EVENTS).replace(place / EVENTS)
    drop_run(folder)


def drop_run(folder: Path) -> None:
    """A finished run's folder goes, `latest` first: killed in between, a run begins again instead of looking for what
    it names."""
    (folder / "latest").unlink(missing_ok=True)
    shutil.rmtree(folder)
