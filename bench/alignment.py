"""What each converter and each loss is worth on the demo's features, and what fusion is worth with few labels.

    polyspace demo --out outputs/demo          (and with --student vjepa2)
    python bench/alignment.py --demo outputs/demo --out docs/results/demo.json

Converters are fitted on the demo's training clips and scored on its validation clips, which nothing was chosen on.
Every network starts from ridge and keeps its best epoch on held-out training clips (0: ridge itself). The labels curve
is `polyspace labels-curve` on the same features.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from alignment_page import write_page

from polyspace.commands.demo import DATASET, DemoConfig, alignment_lines
from polyspace.data.feature_store import FeatureStore
from polyspace.models.spaces.converters import load_converters
from polyspace.train import labels_curve, train_converter
from polyspace.train.embedded.assets import TEACHERS, assets
from polyspace.train.eval_downstream import translation_scores
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.log import say
from polyspace.utils.metrics import mean_cosine

LOSSES = ("l2=1", "smooth_l1=1", "cosine=1", "info_nce=1", "vicreg=1", "barlow=1", "l2=1,cosine=1", "l2=1,info_nce=0.1")
KEPT = """generated dataset split stand_ins clips chance training_clips heads params gates gates_std difference choice
cka retained teacher_heads cost"""
SCORES = ("r2", "cosine", "cka_debiased", "knn_overlap")


def converter_rows(demo: Path, work: Path, epochs: int, seeds: int) -> list[dict[str, Any]]:
    """A row for each teacher and each way to translate into its space: means over seeds (held-out videos, weights)."""
    train, scored = (FeatureStore(demo / "features" / f"features_{DATASET}_{s}.json") for s in ("train", "validation"))
    teachers = [name for name in train.spaces if name != train.student]
    rows = []
    for name in teachers:
        y, mean = scored.features(name), train.features(name).double().mean(0)
        rows.append({"teacher": name, "converter": "mean", "r2": 0.0, "cosine": mean_cosine(mean.expand_as(y), y)})
    tries = [("procrustes", ""), ("ridge", ""), *(("residual_mlp", loss) for loss in LOSSES)]
    for kind, loss in tries:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in teachers}
        for seed in range(seeds):
            folder = work / f"{kind}_{loss}_{seed}".replace("=", "").replace(",", "_")
            line = ["--features", str(train.path), "--teachers", *teachers, "--kind", kind, "--seed", str(seed)]
            line += ["--epochs", str(epochs), "--lr", "3e-4", "--batch", "64", "--save_dir", str(folder)]
            if train_converter.main([*line, *(["--loss", loss] if loss else [])]):
                raise SystemExit(f"train-converter {shlex.join(line)} failed")
            bank, about = load_converters(folder / f"converters_ep{epochs}.pt")
            for name, scores in translation_scores(scored, bank, train).items():
                runs[name].append({k: scores[k] for k in SCORES} | {"best_epoch": about["best_epoch"].get(name)})
        for name, made in runs.items():
            means = {k: sum(run[k] for run in made) / len(made) for k in SCORES}
            rows.append({"teacher": name, "converter": f"{kind} {loss}".strip()} | means | {"seeds": made})
    return sorted(rows, key=lambda r: teachers.index(r["teacher"]))


def curve(demo: Path, student: Any, work: Path, seeds: int) -> dict[str, Any]:
    """The labels curve on the demo's features and converters."""
    words = shlex.split(alignment_lines(DemoConfig(out=demo, student=student))[-1][1])
    source = words[1 : words.index("--seeds")]
    if labels_curve.main([*source, "--out", str(work / "curve"), "--seeds", str(seeds)]):
        raise SystemExit("labels-curve failed")
    return json.loads((work / "curve" / f"labels_curve_{DATASET}_validation.json").read_text())


def language(demo: Path) -> dict[str, Any] | None:
    """What the demo's language phase ended with, where it has one."""
    path = demo / "run" / "pipeline_manifest.json"
    return json.loads(path.read_text())["phases"]["language"]["last"] if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/alignment"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--fits", type=int, default=3, help="fits of each converter, with other held-out videos")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    evaluation = json.loads((args.demo / "fusion" / f"eval_{DATASET}_validation.json").read_text())
    rows = converter_rows(args.demo, args.work, args.epochs, args.fits)
    points = curve(args.demo, evaluation["student"], args.work, args.seeds)
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "torch": torch.__version__}
    head = {"command": "python " + " ".join(sys.argv), "date": datetime.date.today().isoformat(), "machine": machine}
    names = (evaluation["student"], *TEACHERS)
    found = head | {
        "demo_command": shlex.join(["polyspace", *evaluation["run"]["argv"][1:]]),
        "epochs": args.epochs,
        "backbones": {n: json.loads((assets() / n / "about.json").read_text()) for n in names},
        "converters": rows,
        "evaluation": {k: evaluation[k] for k in KEPT.split()},
        "moved": json.loads((args.demo / "indexes" / TEACHERS[0] / "index.json").read_text())["translated"]["expected"],
        "language": language(args.demo),
        "labels_curve": {k: points[k] for k in ("clips", "chance", "seeds", "points")},
    }
    write_json(args.out, found)
    say(f"-> {args.out}, {write_page(args.out)}")


if __name__ == "__main__":
    main()
