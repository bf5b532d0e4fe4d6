"""Everything that reads a file, on files that were changed: nothing may crash, hang, swell, escape or execute.

    python bench/fuzz.py --out docs/results/fuzz.json --seconds 1200
    python bench/fuzz.py --replay lerobot3:1234          one case again, with its traceback

A case changes one good file (bench/fuzz_mutate.py) by a seed and reads it in a child process under limits of memory and
time. Two outcomes are right: a result, or a UserError (VideoError is one). Any other exception, a signal, a limit that
was reached, a file opened outside the folder or code that ran is a finding, recorded with its seed. Readers: videos and
images, every data set layout, and every kind of file that a command of ours writes or takes (READERS).
"""

import argparse
import errno
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from fuzz_mutate import mutate
from fuzz_readers import READERS as BROUGHT
from fuzz_readers import Reader
from fuzz_saved import SAVED
from real_clips import REAL

READERS: dict[str, Reader] = BROUGHT | SAVED
GROWTH, ROOM = 2 << 30, 6 << 30  # bytes that a case may grow by: resident, and of address space
SUSPECT = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
_watch: dict[str, Any] = {"outside": None, "found": None}


# -- one case --------------------------------------------------------------------------------------------------------


GOOD = -1  # the seed that changes nothing


def prepare(base: Path, library: Path, names: list[str]) -> None:
    """Good files of each reader in `base`, from the library of tests/library.py in `library`; each is read once, so
    that the children find everything imported, and a reader that refuses good files is an error."""
    for name in names:
        folder = base / name / "good"
        folder.mkdir(parents=True)
        READERS[name].make(folder, library)
        good = case(name, GOOD, base)
        if good["outcome"] != "right":
            raise RuntimeError(f"good files of {name} are not read: {good}")


def targets(name: str, folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name.partition(".")[2].endswith(READERS[name].endings)
    )


def case(name: str, seed: int, base: Path, strict: bool = False) -> dict[str, Any]:
    """Change a file by the seed, read it, say what came of it. `strict` raises what is not right."""
    rng, reader = random.Random(f"{name}:{seed}"), READERS[name]
    place = Path(tempfile.mkdtemp(prefix=f"{name}_{seed}_", dir=base / name))
    folder, outside = place / "case", place / "outside"
    shutil.copytree(base / name / "good", folder, copy_function=os.link)
    every = targets(name, folder)
    hit = rng.choice(every)
    outside.mkdir()
    for ending in ("", ".mp4", ".webm", ".avi", ".safetensors", ".json"):
        shutil.copyfile(hit, outside / f"x{ending}")
    others = [p.read_bytes() for p in rng.sample(every, min(2, len(every)))]
    data = hit.read_bytes()
    if seed != GOOD:
        data = mutate(rng, hit.name, data, others, str(outside))
    hit.unlink()
    hit.write_bytes(data)
    if reader.seal is not None and rng.random() < 0.67:
        reader.seal(folder, hit)
    _watch.update(outside=str(outside), found=None)
    before, start = _resident(reset=True), time.monotonic()
    outcome, words = "right", ""
    try:
        reader.read(folder, hit)
    except BaseException as error:
        if strict:
            traceback.print_exc()
        outcome, words = judge(error)
    seconds, grown = time.monotonic() - start, max(0, _resident() - before)
    if _watch["found"] or (outside / "executed").exists():
        outcome, words = "escaped or executed", str(_watch["found"])
    elif grown > GROWTH:
        outcome, words = "memory", f"{grown >> 20} MiB"
    shutil.rmtree(place, ignore_errors=True)
    words = words.replace(str(place), "").replace(str(base), "")
    return {"reader": name, "seed": seed, "file": str(hit.relative_to(folder)), "outcome": outcome,
            "words": words[:300], "seconds": round(seconds, 2), "mib": grown >> 20}  # fmt: skip


def judge(error: BaseException) -> tuple[str, str]:
    from polyspace.utils.errors import UserError

    chain: list[BaseException | None] = [error]
    while (last := chain[-1]) is not None:
        out_of_memory = isinstance(last, MemoryError) or getattr(last, "errno", None) == errno.ENOMEM
        if out_of_memory or "allocate memory" in str(last):
            return "memory", f"{type(last).__name__}: {last}"
        chain.append(last.__cause__ or last.__context__)
    if isinstance(error, UserError):
        plain = "\n" not in str(error).strip() and len(str(error)) < 2000
        return ("refused", str(error)) if plain else ("no sentence", str(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f"{Path(f.filename).name}:{f.name}" for f in reversed(frames) if "polyspace" in f.filename), "")
    return type(error).__name__, f"{where}: {error}"


def _resident(reset: bool = False) -> int:
    """Bytes: now, or the most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    key = "VmRSS" if reset else "VmHWM"
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watch["outside"] is None:
        return
    if event in SUSPECT:
        _watch["found"] = f"{event} {args}"
    if event == "open" and isinstance(args[0], str) and os.path.normpath(args[0]).startswith(_watch["outside"]):
        _watch["found"] = f"opened {Path(args[0]).name} outside its folder"


# -- many cases --------------------------------------------------------------------------------------------------------


def _child(pipe: Any, base: Path) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    limit_memory()
    sys.addaudithook(_audit)
    while True:
        name, seed = pipe.recv()
        pipe.send(case(name, seed, base))


def limit_memory() -> None:
    size = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Child:
    """A process that does cases one after another."""

    def __init__(self, base: Path) -> None:
        context = get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(theirs, base), daemon=True)
        self.process.start()
        theirs.close()
        self.job: tuple[str, int] = ("", 0)
        self.since, self.count = 0.0, 0

    def give(self, job: tuple[str, int]) -> None:
        self.job, self.since, self.count = job, time.monotonic(), self.count + 1
        self.pipe.send(job)

    def end(self) -> int | None:
        self.process.kill()
        self.process.join()
        return self.process.exitcode

    def take(self) -> dict[str, Any] | None:
        """What came of the case; None while it runs."""
        late = time.monotonic() - self.since > READERS[self.job[0]].seconds
        if self.pipe.poll() and not late:
            try:
                return self.pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                return self._lost(f"died: exit code {self.process.exitcode}")
        if late:
            self.end()
            return self._lost("time")
        return None

    def _lost(self, outcome: str) -> dict[str, Any]:
        self.count = 1 << 30
        seconds = round(time.monotonic() - self.since, 2)
        return {"reader": self.job[0], "seed": self.job[1], "file": "", "outcome": outcome, "words": "",
                "seconds": seconds, "mib": 0}  # fmt: skip


def campaign(
    base: Path, names: list[str], seed: int, workers: int, seconds: float, most: int
) -> Iterator[dict[str, Any]]:
    """Cases in turn over the readers: seeds from `seed` on, until the time is over or each reader has `most`."""
    jobs = ((name, seed + k) for k in range(most) for name in names if k % READERS[name].rare == 0)
    end, children = time.monotonic() + seconds, [Child(base) for _ in range(workers)]
    busy: list[Child] = []
    for child in children:
        child.give(next(jobs))
        busy.append(child)
    while busy:
        connection.wait([c.pipe for c in busy], timeout=0.5)
        for child in list(busy):
            result = child.take()
            if result is None:
                continue
            yield result
            busy.remove(child)
            job = next(jobs, None) if time.monotonic() < end else None
            if child.count > 300 or job is None:
                child.end()
                child = Child(base) if job is not None else child
            if job is not None:
                child.give(job)
                busy.append(child)


def table(results: dict[str, dict[str, Any]]) -> str:
    head = "| reader | cases | read | refused | findings | worst s | peak MiB |\n|---|---|---|---|---|---|---|"
    rows = [f"| {n} | {r['cases']} | {r['outcomes'].get('right', 0)} | {r['outcomes'].get('refused', 0)} "
            f"| {r['cases'] - r['outcomes'].get('right', 0) - r['outcomes'].get('refused', 0)} "
            f"| {r['seconds']:.1f} | {r['mib']} |" for n, r in results.items()]  # fmt: skip
    return "\n".join([head, *rows])


def build_library(out: Path) -> Path:
    from library import build

    assets = Path(__file__).parents[1] / "polyspace" / "assets" / "backbones"
    return build(out, {name: assets / name for name in ("videomae", "vivit")})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--readers", nargs="+", choices=sorted(READERS), default=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1 << 30, help="of each reader, at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--library", type=Path, help="one that was built before")
    parser.add_argument("--replay", metavar="READER:SEED")
    args = parser.parse_args()
    from polyspace.utils.checkpoint_io import write_json, write_text
    from polyspace.utils.log import say
    from polyspace.utils.run_info import run_info

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    names = (
        args.replay.split(":")[:1] if args.replay else [n for n in args.readers if n != "video_real" or REAL.is_dir()]
    )
    results: dict[str, dict[str, Any]] = {n: {"cases": 0, "outcomes": {}, "seconds": 0.0, "mib": 0} for n in names}
    findings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base, args.library or build_library(base / "library"), names)
        if args.replay:
            limit_memory()
            sys.addaudithook(_audit)
            say(str(case(names[0], int(args.replay.split(":")[1]), base, strict=True)))
            return 0
        for result in campaign(base, names, args.seed, args.workers, args.seconds, args.cases):
            kept, outcome = results[result["reader"]], result["outcome"]
            kept["cases"] += 1
            kept["outcomes"][outcome] = kept["outcomes"].get(outcome, 0) + 1
            kept["seconds"], kept["mib"] = max(kept["seconds"], result["seconds"]), max(kept["mib"], result["mib"])
            if outcome not in ("right", "refused"):
                findings.append(result)
                say(f"{result['reader']}:{result['seed']} {outcome} {result['file']} {result['words'][:160]}")
    say(table(results))
    if args.out:
        limits = {"seconds": {name: READERS[name].seconds for name in names}, "growth_mib": GROWTH >> 20}
        write_json(
            args.out, {"limits": limits, "readers": results, "findings": findings, "run": run_info("fuzz", None)}
        )
        write_text(args.out.with_suffix(".md"), f"# What changed files do\n\n{table(results)}\n")
    return int(bool(findings))


if __name__ == "__main__":
    raise SystemExit(main())
