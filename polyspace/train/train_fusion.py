"""python -m polyspace.train.train_fusion: a gated fusion head on cached features, beside its student-only control."""

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from polyspace.config import parse, run_command
from polyspace.data.batch import CachedFeatures, VideoBatch
from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import SourceConfig
from polyspace.models.spaces.converters import ConverterBank, load_converters
from polyspace.models.spaces.fusion import FusionHead, StudentHead, matched_pair
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.phase import Phase, StepOutput
from polyspace.train.stores import check_fit, get_store
from polyspace.utils.checkpoint_io import (
    load_versioned,
    save_torch,
    sha256_file,
    sha256_json,
    try_writing,
    write_json,
    write_text,
)
from polyspace.utils.errors import UserError
from polyspace.utils.flops import num_params
from polyspace.utils.holdout import hold_out, keep_fraction
from polyspace.utils.log import say, warn
from polyspace.utils.metrics import bootstrap_interval, top_k_hits
from polyspace.utils.misc import get_device, set_seed
from polyspace.utils.run_info import run_info

FORMAT, VERSION = "polyspace.fusion", 2  # 2: gates for each clip


class FusionConfig(SourceConfig):
    converters: Path = Field(description="file written by train-converter")
    features: Path = Field(Path("features"), description="folder to look for a fitting feature store in")
    classes: int | None = Field(None, ge=2, description="number of classes; a fact of the data set, checked")
    hidden: int = Field(256, ge=1, description="width of the fused representation")
    batch: int = Field(4, ge=1, description="clips an update")
    epochs: int = Field(5, ge=1, description="passes over the training part")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="on matrices only")
    holdout: float = Field(
        0.2, gt=0, lt=1, description="share of source videos kept aside, if the converters name none"
    )
    labels_fraction: float = Field(1.0, gt=0, le=1, description="share of each class's training clips with a label")
    seed: int = Field(0, ge=0, description="weights, order of clips, and which clips keep their label")
    save_dir: Path = Field(Path("checkpoints/fusion"), description="folder of the result")


class FusionPhase(Phase):
    """Both heads on the same batches; their losses add up and share no parameter. Best epochs live in buffers."""

    best: Tensor
    best_fusion: FusionHead
    best_control: StudentHead

    def __init__(self, bank: ConverterBank, fusion: FusionHead, control: StudentHead, held_out: VideoBatch) -> None:
        super().__init__()
        self.bank, self.fusion, self.control = bank.requires_grad_(False), fusion, control
        self.best_fusion = copy.deepcopy(fusion).requires_grad_(False)
        self.best_control = copy.deepcopy(control).requires_grad_(False)
        self.register_buffer("best", torch.full((2, 2), -math.inf, dtype=torch.float64))  # per head: score, step
        self._held_out = held_out

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fusion(x, self.bank(x)), self.control(x)

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.features is not None and batch.label is not None
        fused, alone = self.logits(batch.features["student"])
        losses = [F.cross_entropy(z, batch.label) for z in (fused, alone)]
        opened = self.fusion.gates(batch.features["student"]).detach().mean(0)
        gates = {f"gate_{name}": gate for name, gate in zip(self.fusion.projections, opened, strict=True)}
        return StepOutput(
            losses[0] + losses[1], {"loss_fusion": losses[0].detach(), "loss_student": losses[1].detach()} | gates
        )

    def evaluate(self, step: int) -> dict[str, Any]:
        """Held-out accuracy of both heads; a head is kept when it is more accurate, or as accurate at less loss."""
        batch = self._held_out.to(self.best.device)
        assert batch.features is not None and batch.label is not None
        out = {}
        heads = (("fusion", self.fusion, self.best_fusion), ("student", self.control, self.best_control))
        for row, ((name, head, best), logits) in enumerate(
            zip(heads, self.logits(batch.features["student"]), strict=True)
        ):
            accuracy = (logits.argmax(1) == batch.label).double().mean()
            loss = F.cross_entropy(logits.double(), batch.label)
            score = accuracy - 1e-4 * loss.clamp(max=100)
            if score > self.best[row, 0]:
                self.best[row] = torch.stack([score, torch.tensor(float(step), dtype=torch.float64).to(score)])
                best.load_state_dict(head.state_dict())
            out |= {f"held_out_top1_{name}": accuracy.item(), f"held_out_loss_{name}": loss.item()}
        return out


def load_fusion(path: Path, bank: ConverterBank) -> tuple[FusionHead, StudentHead, dict[str, Any]]:
    """Both heads and what stands beside them in the file."""
    about = load_versioned(path, FORMAT, VERSION, "fusion file")
    shape = about["shape"]
    if bank.dims != shape["spaces"]:
        raise UserError(f"{path} was trained with spaces {shape['spaces']}, the converters give {bank.dims}")
    fusion, control = matched_pair(shape["student"], shape["spaces"], shape["hidden"], shape["classes"])
    fusion.load_state_dict(about.pop("fusion"))
    control.load_state_dict(about.pop("control"))
    return fusion.eval(), control.eval(), about


def _check_classes(config: FusionConfig, store: FeatureStore) -> int:
    """The number of classes is the data set's."""
    count = len(store.classes)
    if count < 2:
        raise UserError(f"{store.path} has {count} classes; a head needs at least two")
    if config.classes is not None and config.classes < count:
        raise UserError(f"--classes {config.classes}: {config.dataset} has {count} classes")
    if config.classes is not None and config.classes > count:
        warn(f"--classes {config.classes}: {config.dataset} has {count} classes here, which is used")
    return count


def train(config: FusionConfig) -> int:
    """Train both heads and write them; returns the exit code (1 if too many clips could not be read)."""
    bank, about = load_converters(config.converters)
    try_writing(config.save_dir)
    store, _, code = get_store(config, config.features, config.save_dir / "cache")
    check_fit(bank, about, store, config.converters)
    classes = _check_classes(config, store)
    x, labels = store.features(store.student), store.labels()
    held = _held_out(config, about, store, labels)
    set_seed(config.seed)
    fusion, control = matched_pair(x.shape[1], bank.dims, config.hidden, classes)
    fusion.fit_inputs(x[~held], bank(x[~held]))  # features need no label
    control.input.fit(x[~held])
    labelled = keep_fraction(labels.tolist(), ~held, config.labels_fraction, config.seed)
    data = CachedFeatures({"student": x[labelled]}, labels[labelled])
    phase = FusionPhase(bank, fusion, control, CachedFeatures({"student": x}, labels).batch(held.nonzero().flatten()))
    per_epoch = -(-len(data) // config.batch)
    settings = FitSettings(
        steps=config.epochs * per_epoch,
        batch=min(config.batch, len(data)),
        lr=config.lr,
        save_every=per_epoch,
        eval_every=per_epoch,
        seed=config.seed,
    )
    engine = PlainEngine(phase, build_adamw(phase, config.lr, config.weight_decay), get_device(config.device))
    depends = {"features": store.fingerprint, "converters": sha256_file(config.converters), "hidden": config.hidden}
    depends |= {"holdout": config.holdout, "weight_decay": config.weight_decay, "labels": config.labels_fraction}
    # named by all that the run depends on: the same line continues a killed run, another line starts its own
    folder = config.save_dir / f"run-{sha256_json([asdict(settings), depends])[:12]}"
    fit(engine, len(data), data.batch, settings, folder, name="fusion", about=depends)
    _save(config, phase.cpu(), store, per_epoch, {"train": len(data), "held_out": int(held.sum())})
    write_text(config.save_dir / "metrics.jsonl", (folder / "metrics.jsonl").read_text())
    shutil.rmtree(folder)
    return code


def _held_out(config: FusionConfig, about: dict[str, Any], store: FeatureStore, labels: Tensor) -> Tensor:
    """The converters' own held-out part where they were fitted on these clips: elsewhere translations are in-sample,
    and an epoch chosen there would flatter the fusion head alone."""
    share, seed = config.holdout, config.seed
    if about["fingerprint"] == store.fingerprint:
        share, seed = about["holdout"]["share"], about["holdout"]["seed"]
    held = hold_out(store.groups, labels.tolist(), share, seed)
    present = set(labels[~held].tolist())
    lacking = [name for k, name in enumerate(store.classes) if k not in present]
    if lacking:
        shown = ", ".join(lacking[:5])
        warn(f"{len(lacking)} of {len(store.classes)} classes have no training clip and can't be predicted: {shown}")
    return held


@torch.no_grad()
def _gates(phase: FusionPhase) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each space's gate over the held-out clips."""
    assert phase._held_out.features is not None
    opened = phase.best_fusion.gates(phase._held_out.features["student"])
    spread = opened.std(0, correction=0)
    return {n: (float(opened[:, i].mean()), float(spread[i])) for i, n in enumerate(phase.best_fusion.projections)}


@torch.no_grad()
def _choice(phase: FusionPhase) -> dict[str, Any]:
    """Which head to use: fusion only where a bootstrap over held-out clips shows it to be better than its control."""
    batch = phase._held_out
    assert batch.features is not None and batch.label is not None
    x = batch.features["student"]
    fused, alone = phase.best_fusion(x, phase.bank(x)), phase.best_control(x)
    gain = top_k_hits(fused, batch.label, 1) - top_k_hits(alone, batch.label, 1)
    low, high = bootstrap_interval(gain)
    return {"head": "fusion" if low > 0 else "student only", "top1": gain.mean().item(), "ci": [low, high]}


def _save(config: FusionConfig, phase: FusionPhase, store: FeatureStore, per_epoch: int, clips: dict[str, int]) -> Path:
    path = config.save_dir / f"fusion_ep{config.epochs}.pt"
    shape = {"student": store.spaces[store.student]["dim"], "spaces": phase.bank.dims}
    shape |= {"hidden": config.hidden, "classes": len(store.classes)}
    epochs = {name: round(phase.best[row, 1].item() / per_epoch) for row, name in enumerate(("fusion", "student"))}
    with torch.no_grad():
        scores = FusionPhase(phase.bank, phase.best_fusion, phase.best_control, phase._held_out).eval().evaluate(0)
    params = {"fusion": num_params(phase.fusion), "student": num_params(phase.control)}
    gates, verdict = _gates(phase), _choice(phase)
    about = {
        "format": FORMAT,
        "format_version": VERSION,
        "shape": shape,
        "classes": store.classes,
        "converters": str(config.converters),
        "converters_sha256": sha256_file(config.converters),
        "train_fingerprint": store.fingerprint,
        "train_ids": store.ids,
        "best_epoch": epochs,
        "held_out": scores,
        "clips": clips,
        "params": params,
        "gates": {name: mean for name, (mean, _) in gates.items()},
        "gates_std": {name: std for name, (_, std) in gates.items()},
        "choice": verdict,
        "stand_ins": store.stand_ins,
        "settings": {
            k: getattr(config, k)
            for k in ("epochs", "batch", "lr", "weight_decay", "holdout", "labels_fraction", "seed")
        },
    }
    save_torch(path, about | {"fusion": phase.best_fusion.state_dict(), "control": phase.best_control.state_dict()})
    told = {k: v for k, v in about.items() if k != "train_ids"}
    write_json(config.save_dir / "run.json", run_info("train-fusion", config) | {"result": told})
    for name, label in (("fusion", "fusion head"), ("student", "student-only head")):
        say(
            f"{label}: {params[name]} parameters, best epoch {epochs[name]} of {config.epochs}, "
            f"held-out top-1 {scores[f'held_out_top1_{name}']:.3f} ({clips['held_out']} clips)"
        )
    say("gates, held-out clips: " + ", ".join(f"{n} {mean:+.3f} ± {std:.3f}" for n, (mean, std) in gates.items()))
    low, high = verdict["ci"]
    say(
        f"chosen: {verdict['head']} (fusion − student only on the held-out clips: {verdict['top1']:+.3f} top-1, "
        f"95 % interval [{low:+.3f}, {high:+.3f}]; fusion is chosen where the whole interval is above 0)"
    )
    say(f"-> {path}")
    return path


def main(argv: Sequence[str]) -> int:
    config = parse(
        FusionConfig,
        argv,
        prog="polyspace train-fusion",
        about="Train a residual-gated fusion head and its parameter-matched student-only control on cached features.",
        example="python -m polyspace.train.train_fusion --dataset hmdb51 --root ./datasets/hmdb51 --split train "
        "--student vjepa2 --teachers videomae timesformer vivit "
        "--converters ./checkpoints/converters/converters_ep10.pt --classes 51 --frames 16 --batch 4 --epochs 5 "
        "--lr 3e-4 --save_dir ./checkpoints/fusion",
    )
    return train(config)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
