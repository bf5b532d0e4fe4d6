"""`polyspace demo`: the main job from video files to a report, offline, with the small backbones of the package.

Every step is the public command that a user would type, run in this process; the report shows those lines.
"""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polyspace.bundle import gather
from polyspace.commands import index, report, search
from polyspace.config import Config, parse, run_command
from polyspace.data import build_dataset, featurize, synthetic
from polyspace.data.records import ClipRecord
from polyspace.train import convert_index, eval_downstream, export_index, labels_curve, train_converter, train_fusion
from polyspace.train import run as phases
from polyspace.train.embedded.assets import TEACHERS, assets
from polyspace.train.embedded.chunks import TAKEN
from polyspace.train.embedded.clips import FRAMES, RENDERED, SIDE
from polyspace.utils.checkpoint_io import read_json, write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.folders import sole_writer
from polyspace.utils.log import say

DATASET = "ssv2"
ASKED = 6  # sentences that are searched for
LAYER_CLIPS = 96  # clips on which layers are compared
STUDENTS = {"hnet_vjepa": "H-Net V-JEPA", "vjepa2": "V-JEPA 2"}
Line = tuple[Callable[[Sequence[str]], int], str]


class DemoConfig(Config):
    out: Path = Field(Path("outputs/demo"), description="folder for data, features, checkpoints and the report")
    student: Literal["hnet_vjepa", "vjepa2"] = Field("hnet_vjepa", description="vjepa2 reads no text")
    classes: int = Field(8, ge=2, le=12, description="motion classes")
    clips: int = Field(90, ge=10, description="clips a class, train and validation together")
    epochs: int = Field(40, ge=1, description="passes of the heads over the training clips")
    language_steps: int = Field(600, ge=1, description="updates of the language phase")
    curve_seeds: int = Field(5, ge=2, description="runs at each share of the labels")
    seed: int = Field(0, ge=0, description="clips and heads")

    @property
    def frames(self) -> int:
        """What the student takes of a clip; the teachers' counts are their own."""
        return TAKEN if self.student == "hnet_vjepa" else 16


def alignment_lines(config: DemoConfig) -> list[Line]:
    """(main, line) from clips to the evaluated heads."""
    out = shlex.quote(str(config.out))  # what follows a quoted part belongs to the same word
    data, teachers = f"{out}/data", " ".join(TEACHERS)
    places = " ".join(f"{name}={shlex.quote(str(assets()))}/{name}" for name in (config.student, *TEACHERS))
    backbones = f"--student {config.student} --teachers {teachers} --checkpoint {places} --frames {config.frames}"
    source = f"--dataset {DATASET} --root {data} {backbones} --strict"
    features, converters = f"{out}/features", f"{out}/converters/converters_ep10.pt"
    fusion = f"{out}/fusion/fusion_ep{config.epochs}.pt"
    made = f"--layout {DATASET} --out {data} --clips {config.clips * config.classes} --classes {config.classes}"
    return [
        (synthetic.main, f"synth {made} --seed {config.seed} --height {RENDERED} --width {RENDERED} --frames {FRAMES}"),
        (featurize.main, f"featurize {source} --split train --out {features} --batch 16"),
        (featurize.main, f"featurize {source} --split validation --out {features} --batch 16"),
        (
            train_converter.main,
            f"train-converter --features {features}/features_{DATASET}_train.json --teachers {teachers} "
            f"--save_dir {out}/converters",
        ),
        (
            train_fusion.main,
            f"train-fusion {source} --split train --features {features} --converters {converters} --batch 32 "
            f"--epochs {config.epochs} --lr 1e-3 --seed {config.seed} --save_dir {out}/fusion",
        ),
        (
            eval_downstream.main,
            f"eval {source} --split validation --features {features} --converters {converters} --fusion {fusion} "
            f"--latency_budget 1 --layer_clips {LAYER_CLIPS}",
        ),
        (
            labels_curve.main,
            f"labels-curve {source} --split validation --features {features} --converters {converters} "
            f"--seeds {config.curve_seeds} --out {out}/labels_curve",
        ),
    ]


def use_lines(config: DemoConfig) -> list[Line]:
    """(main, line) of what is done with the result: text, one folder for all, an index moved to a teacher's space."""
    out, student = shlex.quote(str(config.out)), config.student
    converters, fusion = f"{out}/converters/converters_ep10.pt", f"{out}/fusion/fusion_ep{config.epochs}.pt"
    bundled = f"bundle --converters {converters} --fusion {fusion} --out {out}/bundle"
    bundled += f" --evaluation {out}/fusion/eval_{DATASET}_validation.json"
    stored, own, moved = (f"{out}/features", f"{out}/indexes/{student}", f"{out}/indexes/{TEACHERS[0]}")
    lines: list[Line] = []
    if student == "hnet_vjepa":
        given = [f"data.dataset={DATASET}", f"data.root={out}/data", f"data.frames={TAKEN}", f"data.size={SIDE}"]
        sets = " ".join(f"--set {item}" for item in [*given, f"language.steps={config.language_steps}"])
        start = f"--init_from {shlex.quote(str(assets()))}/{student} --seed {config.seed}"
        lines.append((phases.main, f"train --work_dir {out}/run --sequence language {start} {sets}"))
        bundled += f" --run {out}/run"
    lines += [
        (gather.main, bundled),
        (export_index.main, f"export-index --features {stored}/features_{DATASET}_train.json --space {student} "
         f"--out {own}"),
        (convert_index.main, f"convert-index --index {own} --converters {converters} --space {TEACHERS[0]} "
         f"--out {moved}"),
    ]  # fmt: skip
    return lines


def search_lines(config: DemoConfig) -> list[Line]:
    """(main, line) of a search by words among the validation clips."""
    out = shlex.quote(str(config.out))
    clips = f"--dataset {DATASET} --root {out}/data --split validation"
    asked = " ".join(shlex.quote(text) for text in sentences(validation(config)))
    return [
        (index.main, f"index --bundle {out}/bundle {clips} --space language --out {out}/indexes/language"),
        (search.main, f"search --bundle {out}/bundle --index {out}/indexes/language --k 3 --text {asked} "
         f"--out {out}/search.json"),
    ]  # fmt: skip


def validation(config: DemoConfig) -> list[ClipRecord]:
    return build_dataset(DATASET, config.out / "data", "validation").records


def sentences(records: Sequence[ClipRecord]) -> list[str]:
    """Captions of clips, one a class in turn, each of another object where there are enough."""
    chosen: list[str] = []
    labels, things = set(), set()
    for record in records:
        text = record.text or ""
        thing = " ".join(text.split(" in ")[0].split()[-2:])  # "moving a red disc in a circle …"
        if text and record.label not in labels and thing not in things:
            chosen.append(text)
            labels.add(record.label)
            things.add(thing)
    return chosen[:ASKED]


def run_lines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Run each; returns the lines with their seconds. UserError where one fails."""
    steps = []
    for main, line in lines:
        say(f"\n$ polyspace {line}")
        start = time.perf_counter()
        code = main(shlex.split(line)[1:])
        if code:
            raise UserError(f"`polyspace {line.split()[0]}` ended with exit code {code}")
        steps.append({"line": f"polyspace {line}", "seconds": time.perf_counter() - start})
    return steps


def demo(config: DemoConfig) -> Path:
    """Run all steps and write the report; returns its path."""
    steps = run_lines([*alignment_lines(config), *use_lines(config)])
    steps += run_lines(search_lines(config)) if config.student == "hnet_vjepa" else []
    out = config.out
    result = read_json(out / f"fusion/eval_{DATASET}_validation.json", "evaluation")
    told = about(config.student, result["spaces"])
    write_sealed(out / "demo.json", told | {"steps": steps})
    run_lines([(report.main, f"report {shlex.quote(str(out))}")])
    return out / "report.html"


def about(student: str, spaces: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the demo beside what it finds: title, introduction, the backbones' scores."""
    known = {name: read_json(assets() / name / "about.json", "backbone") for name in (student, *TEACHERS)}
    rows = []
    for name, entry in known.items():
        role, before = "student" if name == student else "teacher", entry["random_init"]
        scores = [
            f"{key.replace('_', ' ')} {_short(value)} (random init {_short(before[key])})"
            for key, value in entry["held_out"].items()
        ]
        rows.append([name, role, spaces[name]["dim"], entry["objective"], "; ".join(scores)])
    header = ["backbone", "role", "dims", "learned to predict", "held-out scores"]
    return {
        "title": "PolySpace demo",
        "intro": f"One small {STUDENTS[student]} student serves the feature spaces of three small teachers on "
        "generated clips. An object circles clockwise or counterclockwise a whole number of times; every class visits "
        "the same places, so only the order of frames tells the class. Everything here was computed by the commands "
        "at the end of the page; it shows the pipeline, and says nothing about published checkpoints or real videos.",
        "backbones": {"words": BACKBONES, "header": header, "rows": rows},
    }


BACKBONES = (
    "Our own encoder and real transformers architectures at toy size, trained from nothing on other generated clips "
    "(continuous speeds instead of this task's classes), each by an objective of its own. Scores are on clips held out "
    "there, random init in brackets; skill and explained variance are 0 for the best constant and below it for a "
    "random network."
)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 9 else f"{value:.0f}"


def main(argv: Sequence[str]) -> int:
    config = parse(
        DemoConfig,
        argv,
        prog="polyspace demo",
        about="The whole job on generated clips: featurize, convert, fuse, evaluate, search by words, report.",
        example="polyspace demo --out outputs/demo",
    )
    start = time.perf_counter()
    with sole_writer(config.out, deep=0):  # each line holds its own folder
        page = demo(config)
    say(f"\ndone in {time.perf_counter() - start:.0f} s; the report:")
    say(str(page))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
