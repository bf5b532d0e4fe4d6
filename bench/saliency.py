"""Does weighing chunks by saliency pay? The probe's poolings, with and without saliency labels.

    python bench/saliency.py --out docs/results/saliency.json

For each seed an encoder is pretrained by main.py's defaults (or taken from --work/seed_N), frozen, and every arm's
probe is trained on 512 labelled generated clips of that seed and measured on 1000 held-out ones, beside the same arm on
a random encoder. `saliency` is told the labels when it is measured too: a bound, not a method. Differences to `mean`
are paired over seeds.
"""

import argparse
from pathlib import Path
from typing import Any

from polyspace.config import validate
from polyspace.train.run import RunConfig, run
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import say
from polyspace.utils.metrics import seed_interval
from polyspace.utils.run_info import run_info

ARMS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean"},
    "saliency (labels given)": {"pooling": "saliency"},
    "cam, no labels": {"pooling": "cam"},
    "cam, labels weigh 0.1": {"pooling": "cam", "saliency_weight": 0.1},
    "cam, labels weigh 1": {"pooling": "cam", "saliency_weight": 1.0},
    "attentive": {"pooling": "attentive", "lr": 1e-3},
    "attributes: mean": {"pooling": "mean", "loss": "bce", "labels": "attributes"},
    "attributes: saliency (labels given)": {"pooling": "saliency", "loss": "bce", "labels": "attributes"},
    "attributes: cam, labels weigh 1": {
        "pooling": "cam",
        "saliency_weight": 1.0,
        "loss": "bce",
        "labels": "attributes",
    },
}


def measure(work: Path, seed: int, arm: dict[str, Any], encoder: Path | None) -> dict[str, float]:
    """Held-out score of one arm, and on a random encoder; without `encoder` one is pretrained first."""
    sequence = "probe" if encoder else "pretrain,probe"
    probe = {**arm, "eval_every": 0}
    values = {"work_dir": work, "sequence": sequence, "seed": seed, "init_from": encoder, "probe": probe}
    found = run(validate(RunConfig, values))["phases"]["probe"]
    key = "accuracy" if "accuracy" in found["last"] else "mean_average_precision"
    return {"score": found["last"][key], "random": found["random_encoder"][key]}


def page(rows: dict[str, dict[str, Any]], seeds: int) -> str:
    """The table as Markdown."""
    lines = [
        "# Does saliency-weighted pooling pay?",
        "",
        f"`python bench/saliency.py`, {seeds} seeds (encoder, clips, heads), mean and 95 % t interval. Accuracy over",
        "6 motions (chance .167), mean average precision over 12 attributes. The last column is paired over seeds.",
        "",
        "| pooling | pretrained | random encoder | against mean |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        against = "" if row["against_mean"] is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["against_mean"])
        score, random = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("score", "random"))
        lines.append(f"| {name} | {score} | {random} | {against} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/saliency"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in range(args.seeds):
        for number, (name, arm) in enumerate(ARMS.items()):
            base = args.work / f"seed_{seed}"
            folder = base if number == 0 else args.work / f"seed_{seed}_arm_{number}"
            values = measure(folder, seed, arm, base / "pretrain" if number else None)
            found[name].append(values)
            say(f"seed {seed}, {name}: {values['score']:.3f}, random {values['random']:.3f}")
    rows: dict[str, dict[str, Any]] = {}
    for name, values in found.items():
        base = "attributes: mean" if name.startswith("attributes") else "mean"
        row: dict[str, Any] = {key: seed_interval([v[key] for v in values]) for key in ("score", "random")}
        gaps = [v["score"] - m["score"] for v, m in zip(values, found[base], strict=True)]
        row["against_mean"] = None if name == base else seed_interval(gaps)
        rows[name] = row
    write_json(args.out, {"run": run_info("bench/saliency.py"), "runs": found, "arms": rows})
    write_text(args.out.with_suffix(".md"), page(rows, args.seeds))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
