"""`polyspace labels-curve`: fusion and its student-only control on 1, 5, 10 … % of the labels, over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import parse, run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.models.spaces.converters import ConverterBank, load_converters
from polyspace.report.labels_report import write_labels_files
from polyspace.train.alignment.fusion_phase import LABELS
from polyspace.train.alignment.stores import check_fit, get_store
from polyspace.train.train_fusion import HeadConfig, fit_controls, fit_heads, held_out_rows
from polyspace.utils.checkpoint_io import read_json, sha256_file, sha256_json, write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.folders import sole_writer
from polyspace.utils.log import Progress, say
from polyspace.utils.metrics import bootstrap_interval, seed_interval, top_k_hits
from polyspace.utils.run_info import run_info
from polyspace.utils.trackers import drop_run

DEPENDS = ("hidden", "batch", "epochs", "lr", "weight_decay", "holdout", "controls")


class CurveConfig(HeadConfig):
    split: str = Field("validation", description="where heads are scored; they are trained on train")
    fractions: list[float] = Field([0.01, 0.05, 0.1, 1.0], description="shares of each class's labels, one at least")
    seeds: int = Field(5, ge=2, description="runs at each share: labels, weights, order")
    epochs: int = Field(20, ge=1, description="passes at all labels; smaller shares get as many updates")
    batch: int = Field(32, ge=1, description="clips an update")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    controls: bool = Field(True, description="also fusions of shuffled teachers and of random maps")
    out: Path = Field(Path("checkpoints/labels_curve"), description="folder of the result")


@dataclass
class Points:
    """What every point is made from; controls are fitted once for each seed."""

    config: CurveConfig
    bank: ConverterBank
    train: FeatureStore
    scored: FeatureStore
    held: Tensor
    controls: dict[int, dict[str, ConverterBank]] = field(default_factory=dict)

    def make(self, fraction: float, seed: int) -> dict[str, Any]:
        """Top-1 of the heads at a share of the labels, and what fusion gains over student only on each clip."""
        c, labels = self.config, self.scored.labels()
        if c.controls and seed not in self.controls:
            self.controls[seed] = fit_controls(self.bank, self.train, self.held, seed)
        how: dict[str, Any] = {"labels_fraction": fraction, "equal_updates": True}
        how |= {"controls": self.controls.get(seed)}
        phase, clips, folder = fit_heads(c, self.bank, self.train, self.held, c.out, seed, **how)
        with torch.inference_mode():
            logits = phase.best_set.eval()(self.scored.features(self.scored.student))
        drop_run(folder)
        hits = {name: top_k_hits(z, labels, 1) for name, z in logits.items()}
        scores = {LABELS[name]: hit.mean().item() for name, hit in hits.items()}
        gains = (hits["fusion"] - hits["student"]).int().tolist()
        point = {"fraction": fraction, "seed": seed, "clips": clips["train"], "top1": scores, "gains": gains}
        return point | {"chosen": phase.choice()}


def curve(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of one share together: mean and 95 % t interval over seeds of each head and of their paired difference,
    the difference's bootstrap interval over clips (each clip's mean over seeds), a verdict that needs both to exclude
    0, and how often a bootstrap on held-out training clips chose the fusion head."""
    out = []
    for fraction in sorted({p["fraction"] for p in points}):
        own = [p for p in points if p["fraction"] == fraction]
        scores = {name: [p["top1"][name] for p in own] for name in own[0]["top1"]}
        gains = [a - b for a, b in zip(scores[LABELS["fusion"]], scores[LABELS["student"]], strict=True)]
        over_clips = bootstrap_interval(torch.tensor([p["gains"] for p in own]).double().mean(0))
        over_seeds = seed_interval(gains)[1:]
        low, high = min(over_clips[0], over_seeds[0]), max(over_clips[1], over_seeds[1])
        out.append(
            {
                "fraction": fraction,
                "clips": own[0]["clips"],
                "heads": {name: {"top1": seed_interval(v), "seeds": v} for name, v in scores.items()},
                "difference": {"top1": seed_interval(gains), "seeds": gains, "over_clips": over_clips},
                "verdict": "fusion helps" if low > 0 else "fusion hurts" if high < 0 else "no difference shown",
                "fusion_chosen": sum(p["chosen"]["head"] == "fusion" for p in own),
            }
        )
    return out


def run(config: CurveConfig) -> tuple[dict[str, Any], int]:
    """Train and score all points (those that were finished before are kept) and write the result's files."""
    if not all(0 < f <= 1 for f in config.fractions):
        raise UserError(f"--fractions {' '.join(map(str, config.fractions))}: shares lie in (0, 1]")
    bank, about = load_converters(config.converters)
    with sole_writer(config.out):
        return _run(config, bank, about)


def _run(config: CurveConfig, bank: ConverterBank, about: dict[str, Any]) -> tuple[dict[str, Any], int]:
    train_config = config.model_copy(update={"split": "train"})
    train, _, code = get_store(train_config, config.features, config.out / "cache")
    scored, _, scored_code = get_store(config, config.features, config.out / "cache")
    for store in (train, scored):
        check_fit(bank, about, store, config.converters)
    if set(train.ids) & set(scored.ids):
        raise UserError(f"--split {config.split} holds training clips; a labels curve is scored on others")
    held = held_out_rows(config, about, train, 0)
    settings = config.model_dump(mode="json", include=set(DEPENDS))
    depends = [train.fingerprint, scored.fingerprint, sha256_file(config.converters), settings]
    places = [(f, seed) for f in sorted(set(config.fractions)) for seed in range(config.seeds)]
    points, maker = [], Points(config, bank, train, scored, held)
    with Progress(len(places), "labels curve", "run") as bar:
        for fraction, seed in places:
            file = config.out / "points" / f"{sha256_json([depends, fraction, seed])[:16]}.json"
            if not file.is_file():
                file.parent.mkdir(exist_ok=True)
                write_sealed(file, maker.make(fraction, seed))
            points.append(read_json(file, "point of the curve"))
            bar.step()
    result = {
        "format": "polyspace.labels_curve",
        "format_version": 1,
        "dataset": config.dataset,
        "split": config.split,
        "generated": scored.manifest.get("generated", False),
        "stand_ins": scored.stand_ins,
        "student": scored.student,
        "clips": {"scored": len(scored), "held_out": int(held.sum()), "train": len(train)},
        "chance": 1 / len(scored.labels().unique()),
        "seeds": config.seeds,
        "points": curve(points),
        "run": run_info("labels-curve", config),
    }
    write_labels_files(result, config.out)
    return result, max(code, scored_code)


def main(argv: Sequence[str]) -> int:
    config = parse(
        CurveConfig,
        argv,
        prog="polyspace labels-curve",
        about="Does fusion pay with few labels? Both heads on shares of the labels, over seeds, with intervals.",
        example="polyspace labels-curve --dataset hmdb51 --root ./datasets/hmdb51 "
        "--converters ./checkpoints/converters/converters_ep10.pt --frames 16",
    )
    result, code = run(config)
    for point in result["points"]:
        mean, low, high = point["difference"]["top1"]
        heads = ", ".join(f"{name} {h['top1'][0]:.3f}" for name, h in point["heads"].items())
        say(f"{point['clips']} labels: {heads}; difference {mean:+.3f} [{low:+.3f}, {high:+.3f}]: {point['verdict']}")
    say(f"-> {config.out / f'labels_curve_{config.dataset}_{config.split}.md'}")
    return code


if __name__ == "__main__":
    raise SystemExit(run_command(main))
