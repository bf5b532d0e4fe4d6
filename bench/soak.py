"""An hour of work in processes that live on: does anything grow?

    python bench/soak.py --out docs/results/soak.json

Two processes take turns: one featurizes the same folder into fresh stores with two workers (generated clips, real ones
from POLYSPACE_REAL_DATA where there are some, some broken), the other trains fresh runs of the small model with
checkpoints, evaluation and looks, all four phases one after the other. Memory, open files, threads, temporary files and
children of the one at work are sampled every few seconds, and once more at rest after every round. Linux only.

oneDNN keeps code for every shape it has met, 1024 of them by default, and training meets new ones for long; with
ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 set, what still grows is no cache of its.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from real_clips import REAL
from soak_page import soak_figure, soak_page, summary
from soak_samples import active_clock, reading
from soak_work import KINDS, videos, work_on

from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import say
from polyspace.utils.run_info import run_info

PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


class Worker:
    """A long-lived process of one kind, with all that was sampled of it."""

    def __init__(self, kind: str, folder: Path, every: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.kind, self.folder, self.every = kind, folder / kind, every
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work_on, args=(kind, self.folder, theirs))
        self.process.start()
        self.samples: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []
        self.active = self.passed = 0.0  # seconds of computing, and by the clock
        self.expect("ready")

    def expect(self, wanted: str) -> None:
        """Take messages, rounds among them, until `wanted`; a failure of the work is an error here."""
        while not self.take(wanted):
            self.process.join(0)
            if not self.process.is_alive():
                raise RuntimeError(f"{self.kind}: the process ended with {self.process.exitcode}")

    def take(self, wanted: str = "", wait: float = 1.0) -> bool:
        """Whether the next message, if one comes within `wait` seconds, is `wanted`."""
        if not self.pipe.poll(wait):
            return False
        message = self.pipe.recv()
        if message[0] == "failed":
            raise RuntimeError(f"{self.kind}: {message[1]}")
        if message[0] == "round":
            self.rounds.append({"active_s": self.active} | message[2])
        return message[0] == wanted

    def turn(self, seconds: float) -> None:
        """Sample while it works for so many seconds of computing, and to the end of the round that is then running."""
        until, stopping = self.active + seconds, False
        self.pipe.send("go")
        last = self.look()
        while True:
            due = time.monotonic() + self.every
            while (left := due - time.monotonic()) > 0:
                if self.take("stopped", left):
                    return
            now = self.look()
            self.active += active_clock([last["at"], now["at"]], [last["cpu_s"], now["cpu_s"]])[-1]
            self.passed += now["at"] - last["at"]
            self.samples.append({"active_s": self.active} | now)
            last = now
            if self.active >= until and not stopping:
                self.pipe.send("stop")
                stopping = True

    def look(self) -> dict[str, Any]:
        return {"at": time.monotonic()} | reading(self.process.pid, self.folder / "tmp")

    def end(self) -> None:
        if self.process.is_alive():
            try:
                self.pipe.send("end")
                self.process.join(10)
            except OSError:
                pass
        if self.process.is_alive():
            self.process.terminate()


def soak(minutes: float, turn: float, every: float, folder: Path, report: Callable[[list[Worker]], None]) -> None:
    """Turns of `turn` minutes until both kinds together have worked for `minutes`; `report` is called after each."""
    videos(folder / "clips")
    workers: list[Worker] = []
    try:
        for kind in KINDS:
            workers.append(Worker(kind, folder, every))
        while sum(w.active for w in workers) < 60 * minutes:
            worker = min(workers, key=lambda w: w.active)
            worker.turn(60 * turn)
            rest = f"{worker.rounds[-1]['rss_mib']:.0f} MiB at rest" if worker.rounds else ""
            say(f"{worker.kind}: {worker.active / 60:.1f} min, {len(worker.rounds)} rounds, {rest}")
            if all(w.rounds for w in workers):
                report(workers)
    finally:
        for worker in workers:
            worker.end()


def write(out: Path, asked: float, workers: list[Worker]) -> None:
    """All that is known so far, as JSON, a page and a picture: an hour that is cut short keeps what it measured."""
    minutes = sum(w.active for w in workers) / 60
    bounded = os.environ.get(PRIMITIVES)
    about = {
        "command": f"{f'{PRIMITIVES}={bounded} ' if bounded else ''}python bench/soak.py --out {out}",
        "picture": out.with_suffix(".png").name,
        "minutes": round(minutes, 1),
        "asked": asked,
        "real_clips": REAL.is_dir(),
        "kinds": {w.kind: summary(w.samples, w.rounds, w.passed) for w in workers},
        "environment": run_info("soak")["environment"],
    }
    write_json(out, about)
    write_text(out.with_suffix(".md"), soak_page(about))
    soak_figure(about, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="of computing in all, waiting not counted")
    parser.add_argument("--turn", type=float, default=1, help="minutes that each process works before the other does")
    parser.add_argument("--every", type=float, default=3, help="seconds between samples")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_soak_") as work:
        soak(args.minutes, args.turn, args.every, Path(work), partial(write, args.out, args.minutes))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
