"""What students of our own keep of the teachers: H-Net, the tubelet baseline and random weights, over seeds.

    python bench/students.py --hnet outputs/saliency --tubelet outputs/tubelet --out docs/results/students.json

`--hnet` and `--tubelet` hold runs of main.py as seed_0, seed_1 …; what is missing is pretrained there first, as
SETTINGS say. Each student, and H-Net at random init, serves the demo's small teachers on generated clips in the HMDB51
layout: probes fitted on a teacher's true features are read on translated ones.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

import torch

from polyspace.config import validate
from polyspace.data import featurize, synthetic
from polyspace.data.feature_store import FeatureStore
from polyspace.models.spaces.converters import load_converters
from polyspace.models.vjepa.saved import find_encoder, make_encoder, read_encoder, save_encoder
from polyspace.train import train_converter
from polyspace.train.alignment.retained import retained_table
from polyspace.train.embedded.assets import TEACHERS, assets
from polyspace.train.embedded.clips import FRAMES, RENDERED
from polyspace.train.run import RunConfig, run
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import say
from polyspace.utils.metrics import seed_interval
from polyspace.utils.run_info import run_info

# about as many seconds of pretraining for both: 3500 updates of H-Net with its defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "hnet": {},
    "tubelet": {"encoder": {"arch": "tubelet"}, "pretrain": {"lr": 2e-3, "batch": 16, "steps": 2000}},
}
CLASSES, CLIPS = 8, 90


def encoder_of(arm: str, folder: Path, seed: int) -> Path:
    """The folder of a pretrained encoder, made now where it is missing; `random`: H-Net's shape, other weights."""
    place = folder / f"seed_{seed}"
    if arm != "random":
        if find_encoder(place) is None:
            run(validate(RunConfig, {"work_dir": place, "sequence": "pretrain", "seed": seed, **SETTINGS[arm]}))
        return place
    made = place.parent / f"random_{seed}"
    found = find_encoder(place)
    assert found is not None
    about = read_encoder(found)
    torch.manual_seed(1000 + seed)
    save_encoder(made, make_encoder(about["encoder"]), about["encoder"], {"dataset": "nothing"}, about["input"])
    return made


def measure(encoder: Path, work: Path, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Retained accuracy and held-out scores of one student."""
    places = f"hnet_vjepa={encoder} " + " ".join(f"{name}={assets() / name}" for name in TEACHERS)
    backbones = f"--student hnet_vjepa --teachers {' '.join(TEACHERS)} --checkpoint {places} --frames {args.frames}"
    for split in ("train", "validation"):
        line = f"--dataset hmdb51 --root {args.work / 'data'} {backbones} --split {split} --out {work} --batch 16"
        if featurize.main(shlex.split(line)):
            raise SystemExit(f"featurize {line} failed")
    train, scored = (FeatureStore(work / f"features_hmdb51_{split}.json") for split in ("train", "validation"))
    line = f"--features {train.path} --teachers {' '.join(TEACHERS)} --seed {seed} --save_dir {work}"
    if train_converter.main(shlex.split(line)):
        raise SystemExit(f"train-converter {line} failed")
    bank, about = load_converters(work / "converters_ep10.pt")
    table = retained_table(train, scored, bank, about["holdout"])
    kept = {name: {k: entry.get(k) for k in ("true", "translated", "retained")} for name, entry in table.items()}
    for name, entry in about["held_out"].items():
        kept[name]["r2"] = entry["kinds"][about["kind"]]["r2"]
    return kept


def page(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """The table as Markdown: means and 95 % t intervals over seeds."""
    lines = [
        "# Students of our own",
        "",
        f"`python bench/students.py`, {args.seeds} seeds (encoders and converters), {args.frames} frames a clip,",
        f"{CLASSES} motion classes of generated clips (chance {1 / CLASSES:.3f}). Own: linear probe on the student's",
        "feature. Translated: a probe fitted on the teacher's true features, read on translations. R²: held out.",
        "",
        "| student | own | teacher | true | translated | R² |",
        "|---|---|---|---|---|---|",
    ]
    for arm, runs in found.items():
        own = next(name for name in runs[0] if name.endswith("(student)"))
        for teacher in TEACHERS:
            cells = [seed_interval([r[own]["true"] for r in runs])]
            cells += [seed_interval([r[teacher][key] for r in runs]) for key in ("true", "translated", "r2")]
            shown = ["{:.3f} [{:.3f}, {:.3f}]".format(*cell) for cell in cells]
            lines.append(f"| {arm} | {shown[0]} | {teacher} | {cells[1][0]:.3f} | {shown[2]} | {shown[3]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hnet", type=Path, required=True)
    parser.add_argument("--tubelet", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/students"))
    parser.add_argument("--frames", type=int, default=36, help="frames that students take")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    size = f"--height {RENDERED} --width {RENDERED} --frames {FRAMES}"
    made = f"--layout hmdb51 --out {args.work / 'data'} --clips {CLASSES * CLIPS} --classes {CLASSES} --seed 0 {size}"
    if synthetic.main(shlex.split(made)):
        raise SystemExit("synth failed")
    found: dict[str, list[dict[str, Any]]] = {"hnet": [], "tubelet": [], "random": []}
    for seed in range(args.seeds):
        for arm in found:
            folder = args.tubelet if arm == "tubelet" else args.hnet
            found[arm].append(measure(encoder_of(arm, folder, seed), args.work / f"{arm}_{seed}", args, seed))
            write_json(args.out, {"run": run_info("bench/students.py"), "frames": args.frames, "runs": found})
    write_text(args.out.with_suffix(".md"), page(found, args))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
