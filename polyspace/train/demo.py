"""`polyspace demo`: the main job from video files to a report, offline, with the small backbones of the package.

Every step is the public command that a user would type, run in this process; the report shows those lines.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from polyspace.config import Config, parse, run_command
from polyspace.data import build_dataset, featurize, synthetic
from polyspace.data.video import probe, read_frames
from polyspace.report.demo_report import write_demo_report
from polyspace.train import eval_downstream, labels_curve, train_converter, train_fusion
from polyspace.train.embedded.clips import FRAMES, RENDERED
from polyspace.train.embedded.make import TASKS
from polyspace.utils.errors import UserError
from polyspace.utils.log import say

TEACHERS = ("videomae", "timesformer", "vivit")


class DemoConfig(Config):
    out: Path = Field(Path("outputs/demo"), description="folder for data, features, checkpoints and the report")
    classes: int = Field(8, ge=2, le=12, description="motion classes")
    clips: int = Field(90, ge=10, description="clips a class, train and validation together")
    epochs: int = Field(40, ge=1, description="passes of the heads over the training clips")
    curve_seeds: int = Field(5, ge=2, description="runs at each share of the labels")
    seed: int = Field(0, ge=0, description="clips and heads")


def assets() -> Path:
    """The folder of the small backbones that come with the package."""
    folder = Path(str(resources.files("polyspace") / "assets" / "backbones"))
    if not folder.is_dir():
        raise UserError(
            f"the small backbones are not at {folder}; make them with polyspace make-backbones --out {folder}"
        )
    return folder


def command_lines(config: DemoConfig) -> list[tuple[Callable[[Sequence[str]], int], str]]:
    """(main, line) of every step, in order."""
    out, data = config.out, config.out / "data"
    teachers = " ".join(TEACHERS)
    places = " ".join(f"{name}={assets() / name}" for name in TASKS)
    backbones = f"--student vjepa2 --teachers {teachers} --checkpoint {places} --frames 16 --strict"
    source = f"--dataset hmdb51 --root {data} {backbones}"
    features, converters = out / "features", out / "converters" / "converters_ep10.pt"
    fusion = out / "fusion" / f"fusion_ep{config.epochs}.pt"
    made = f"--layout hmdb51 --out {data} --clips {config.clips * config.classes} --classes {config.classes}"
    return [
        (synthetic.main, f"synth {made} --seed {config.seed} --height {RENDERED} --width {RENDERED} --frames {FRAMES}"),
        (featurize.main, f"featurize {source} --split train --out {features} --batch 16"),
        (featurize.main, f"featurize {source} --split validation --out {features} --batch 16"),
        (
            train_converter.main,
            f"train-converter --features {features}/features_hmdb51_train.json --teachers {teachers} "
            f"--save_dir {converters.parent}",
        ),
        (
            train_fusion.main,
            f"train-fusion {source} --split train --features {features} --converters {converters} --batch 32 "
            f"--epochs {config.epochs} --lr 1e-3 --seed {config.seed} --save_dir {fusion.parent}",
        ),
        (
            eval_downstream.main,
            f"eval {source} --split validation --features {features} --converters {converters} --fusion {fusion} "
            "--latency_budget 1",
        ),
        (
            labels_curve.main,
            f"labels-curve {source} --split validation --features {features} --converters {converters} "
            f"--seeds {config.curve_seeds} --out {out / 'labels_curve'}",
        ),
    ]


def sample_clips(root: Path) -> dict[str, Any]:
    """The first training clip of each class: {class name: uint8 (T,H,W,3)}."""
    data = build_dataset("hmdb51", root, "train")
    first: dict[str, Any] = {}
    for record in data.records:
        name = data.classes[record.label] if record.label is not None else ""
        if name not in first:
            first[name] = read_frames(record.path, range(probe(record.path).num_frames)).numpy()
    return first


def demo(config: DemoConfig) -> Path:
    """Run all steps and write the report; returns its path."""
    steps = []
    for main, line in command_lines(config):
        say(f"\n$ polyspace {line}")
        start = time.perf_counter()
        code = main(shlex.split(line)[1:])
        if code:
            raise UserError(f"`polyspace {line.split()[0]}` ended with exit code {code}")
        steps.append({"line": f"polyspace {line}", "seconds": time.perf_counter() - start})
    fusion = config.out / "fusion"
    result = json.loads((fusion / "eval_hmdb51_validation.json").read_text())
    curve = json.loads((config.out / "labels_curve" / "labels_curve_hmdb51_validation.json").read_text())
    about = {name: json.loads((assets() / name / "about.json").read_text()) for name in TASKS}
    return write_demo_report(config.out, result, curve, about, steps, sample_clips(config.out / "data"))


def main(argv: Sequence[str]) -> int:
    config = parse(
        DemoConfig,
        argv,
        prog="polyspace demo",
        about="The whole job on generated clips: featurize, convert, fuse, evaluate, report.",
        example="polyspace demo --out outputs/demo",
    )
    start = time.perf_counter()
    report = demo(config)
    say(f"\ndone in {time.perf_counter() - start:.0f} s; the report:")
    say(str(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
