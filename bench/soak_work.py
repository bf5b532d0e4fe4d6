"""The two long-lived processes of bench/soak.py: each calls a command's own code again and again until told to stop."""

import gc
import os
import random
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from real_clips import REAL, videos_in
from soak_samples import heap_mib, reading

from polyspace.config import run_command
from polyspace.data import synthetic
from polyspace.data.featurize import FeaturizeConfig, featurize
from polyspace.train import run as phases
from polyspace.train.embedded.assets import assets

TEACHERS = ("videomae", "timesformer", "vivit")
# a round of training takes about 20 s on two cores, evaluations, looks and checkpoints included
SETTINGS = {
    "data": "size=32 max_failed=0.5 workers=2",
    "encoder": "dim=32 depth=1 cell_dim=32",
    "pretrain": "steps=40 batch=8 save_every=20 log_every=5",
    "language": "steps=20 batch=16 clips=64 held_out=32 dim=32",
    "probe": "steps=20 batch=16 clips=64 held_out=64 eval_every=10",
    "action": "steps=10 batch=8 width=32 depth=1 horizon=2 episodes.episodes=16 episodes.held_out=8 episodes.frames=8",
}
BROKEN_EVERY = 12  # one clip in so many is cut short, one is noise


def videos(root: Path, clips: int = 48) -> Path:
    """A folder of generated clips, every twelfth cut in half and every twelfth bytes of noise, and of the real files
    under POLYSPACE_REAL_DATA, if there are any: whole clips of a public data set, and odd or damaged ones."""
    drawn = root / "drawn"
    line = f"--layout hmdb51 --out {drawn} --clips {clips} --classes 4 --height 64 --width 80 --frames 29 --workers 1"
    if run_command(synthetic.main, shlex.split(line)) != 0:
        raise RuntimeError("the clips could not be drawn")
    folder = root / "videos"
    for number, path in enumerate(sorted(drawn.rglob("*.avi"))):
        place = folder / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        if number % BROKEN_EVERY == 1:
            data = data[: len(data) // 2]
        if number % BROKEN_EVERY == 7:
            data = random.Random(number).randbytes(len(data))
        place.write_bytes(data)
    for source in ("hmdb51", "odd"):
        for path in videos_in(REAL / source)[:24]:
            (folder / source).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / source / path.name)
    return folder


def featurize_rounds(work: Path) -> Iterator[Callable[[], None]]:
    """Every round: a fresh store of all clips by two workers, every other one with tokens."""
    places = [f"{name}={assets() / name}" for name in ("vjepa2", *TEACHERS)]
    for number in count():
        config = FeaturizeConfig(
            dataset="videofolder",
            root=work.parent / "clips" / "videos",
            out=work / f"store{number}",
            teachers=list(TEACHERS),
            checkpoint=places,
            workers=2,
            batch=4,
            tokens=number % 2 == 1,
        )

        def go(config: FeaturizeConfig = config) -> None:
            store = featurize(config)
            if not store.is_sound() or not store.manifest["failed"]:
                raise RuntimeError("a store is unsound, or names none of the broken clips")

        yield go


def train_rounds(work: Path) -> Iterator[Callable[[], None]]:
    """Every round: a fresh run of all four phases; every other one only pretrains, on the files, with two workers."""
    files = ["data.dataset=videofolder", f"data.root={work.parent / 'clips' / 'videos'}"]
    for number in count():
        from_files = number % 2 == 1
        sequence = "pretrain" if from_files else "pretrain,language,probe,action"
        own = [f"{part}.{item}" for part, items in SETTINGS.items() for item in items.split()]
        sets = [*own, f"seed={number}", *(files if from_files else ["data.clips=256"])]
        argv = ["--work_dir", str(work / f"run{number}"), "--device", "cpu", "--sequence", sequence]
        argv += [word for item in sets for word in ("--set", item)]

        def go(argv: list[str] = argv) -> None:
            if run_command(phases.main, argv) != 0:
                raise RuntimeError("a run of training failed; its last line says why")

        yield go


KINDS = {"featurize": featurize_rounds, "train": train_rounds}


def work_on(kind: str, folder: Path, pipe: Connection) -> None:
    """Body of a process: after "go" rounds until "stop", which takes effect at a round's end; then "end" ends it.

    Sends ("ready",) once, ("round", number, reading) after every round, ("stopped",) for every "stop", ("failed", why).
    What is printed goes to a file in `folder`, which holds the process's temporary files too.
    """
    (folder / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    log = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    torch.set_num_threads(1)
    rounds = enumerate(KINDS[kind](folder))
    try:
        pipe.send(("ready",))
        while pipe.recv() == "go":
            while not pipe.poll():
                number, go = next(rounds)
                go()
                pipe.send(("round", number, at_rest(folder)))
                tidy(folder)
            if pipe.recv() != "stop":
                return
            pipe.send(("stopped",))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def at_rest(folder: Path) -> dict[str, Any]:
    """What this process holds between two rounds, when everything of the last one should be gone."""
    gc.collect()
    more = {"heap_mib": heap_mib(), "blocks": sys.getallocatedblocks(), "objects": len(gc.get_objects())}
    return reading(os.getpid(), folder / "tmp") | more


def tidy(folder: Path) -> None:
    """Stores and runs of past rounds are removed, so that disks stay small."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != "tmp":
            shutil.rmtree(path)
