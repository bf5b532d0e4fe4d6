"""Small runs of the commands that write folders, typed in a folder of their own, and what they are made from."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from index_files import make_place, save_rows, student_rows
from kills import Case, broken, sums

from polyspace.bundle.gather import main as bundle
from polyspace.config import run_command
from polyspace.data.featurize import main as featurize
from polyspace.data.synthetic import main as synth
from polyspace.train.convert_index import main as convert_index
from polyspace.train.run import main as phases
from polyspace.train.train_converter import main as train_converter

MAINS = {
    "synth": synth,
    "featurize": featurize,
    "train-converter": train_converter,
    "pretrain": phases,
    "convert-index": convert_index,
    "bundle": bundle,
}
SETS = "data.clips=12 data.size=24 data.frames=6 encoder.dim=32 encoder.depth=1 encoder.cell_dim=32 pretrain.batch=8"
PRETRAIN = " ".join(f"--set {item}" for item in (*SETS.split(), "pretrain.steps=6", "pretrain.save_every=2"))
# a page says how long phases took; the state of Python's generator is moved by beartype, which draws what it checks
LOOSE = ("*.html", "trainer.pt", "checksums.json")


@dataclass
class SmallRuns:
    """`line` of each command by name, with its result in `out`; what undisturbed runs left is kept in `whole`."""

    base: Path
    whole: dict[str, dict[str, str]] = field(default_factory=dict)
    sizes: dict[str, Path] = field(default_factory=dict)  # where they left it

    def line(self, name: str) -> str:
        base = self.base
        store = f"{base}/store/features_hmdb51_train.json"
        return {
            "synth": "--layout hmdb51 --out out --clips 8 --classes 2 --height 32 --width 40 --workers 1",
            "featurize": f"--dataset hmdb51 --root {base}/clips --split train --out out --student vjepa2 "
            "--teachers timesformer --batch 2 --workers 0 --frames 4",
            "train-converter": f"--features {store} --teachers timesformer --epochs 2 --save_dir out",
            "pretrain": f"--work_dir out --sequence pretrain --track none {PRETRAIN}",
            "convert-index": f"--index {base}/x.npy --converters {base}/c.pt --space t --rows 1000 --out out",
            "bundle": f"--run {base}/run --out out",
        }[name]

    def run(self, name: str) -> int:
        return run_command(MAINS[name], shlex.split(self.line(name)))

    def expected(self, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """sha256 of each file of an undisturbed run."""
        if name not in self.whole:
            place = self.base / "whole" / name
            place.mkdir(parents=True)
            with monkeypatch.context() as patch:
                patch.chdir(place)
                assert self.run(name) == 0
            self.whole[name], self.sizes[name] = result(place), place
        return self.whole[name]


def result(place: Path) -> dict[str, str]:
    """sha256 of each file under `place`, none of which is half-written."""
    assert list(broken(place)) == []
    return sums(place, Case("", "", LOOSE))


def make(base: Path) -> SmallRuns:
    made = SmallRuns(base)
    clips = f"--layout hmdb51 --out {base}/clips --clips 24 --classes 2 --height 32 --width 40 --workers 1"
    assert run_command(synth, clips.split()) == 0
    assert run_command(featurize, made.line("featurize").replace("--out out", f"--out {base}/store").split()) == 0
    assert run_command(phases, made.line("pretrain").replace("--work_dir out", f"--work_dir {base}/run").split()) == 0
    make_place(base)
    save_rows(base / "x.npy", student_rows(20_000))
    return made
