"""python -m polyspace.train.train_fusion: a gated fusion head on cached features, beside its student-only control."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from polyspace.config import parse, run_command
from polyspace.data.batch import CachedFeatures
from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import SourceConfig
from polyspace.models.spaces.converters import ConverterBank, LinearConverter, load_converters
from polyspace.train.alignment.fusion_phase import LABELS, FusionPhase, HeadSet, HeadShape, control_banks
from polyspace.train.alignment.stores import check_fit, get_store
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.settings import Track
from polyspace.utils.checkpoint_io import (
    check_strict,
    load_versioned,
    save_torch,
    sha256_file,
    sha256_json,
    write_sealed,
)
from polyspace.utils.errors import UserError
from polyspace.utils.flops import num_params
from polyspace.utils.folders import sole_writer
from polyspace.utils.holdout import hold_out, keep_fraction
from polyspace.utils.log import say, warn
from polyspace.utils.misc import get_device, set_seed
from polyspace.utils.reading import check_form, reads
from polyspace.utils.run_info import run_info
from polyspace.utils.trackers import keep_log

FORMAT, VERSION = "polyspace.fusion", 2  # 2: gates for each clip


class HeadConfig(SourceConfig):
    """How heads are trained."""

    converters: Path = Field(description="file written by train-converter")
    features: Path = Field(Path("features"), description="folder to look for a fitting feature store in")
    hidden: int = Field(256, ge=1, description="width of the fused representation")
    batch: int = Field(4, ge=1, description="clips an update")
    epochs: int = Field(5, ge=1, description="passes over the training part")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="on matrices only")
    holdout: float = Field(
        0.2, gt=0, lt=1, description="share of source videos kept aside, if the converters name none"
    )


class FusionConfig(HeadConfig):
    classes: int | None = Field(None, ge=2, description="number of classes; a fact of the data set, checked")
    labels_fraction: float = Field(1.0, gt=0, le=1, description="share of each class's training clips with a label")
    seed: int = Field(0, ge=0, description="weights, order of clips, and which clips keep their label")
    controls: bool = Field(True, description="also train fusions of shuffled teachers and of random maps")
    save_dir: Path = Field(Path("checkpoints/fusion"), description="folder of the result")
    track: Track = ("auto",)


class About(TypedDict):
    """What stands in every fusion file; further keys are for people."""

    shape: dict[str, Any]
    heads: dict[str, dict[str, Any]]
    control_banks: dict[str, dict[str, Any]]
    classes: list[str]
    choice: dict[str, Any]
    held_out: dict[str, Any]
    converters_sha256: str


def load_heads(path: Path, bank: ConverterBank) -> tuple[HeadSet, dict[str, Any]]:
    """All heads and what stands beside them in the file."""
    about = load_versioned(path, FORMAT, VERSION, "fusion file")
    check_form(about, About, path, "fusion file")
    with reads(path, "fusion file"):
        shape = HeadShape(**about["shape"])
        if bank.dims != shape.spaces:
            raise UserError(f"{path} was trained with spaces {shape.spaces}, the converters give {bank.dims}")
        banks = {"fusion": bank}
        for name, maps in about.pop("control_banks").items():
            banks[name] = ConverterBank({space: LinearConverter(*pair) for space, pair in maps.items()})
        state = {f"{name}.{key}": value for name, part in about.pop("heads").items() for key, value in part.items()}
        with torch.device("meta"):
            check_strict(HeadSet(shape, banks).heads, state, path)
        heads = HeadSet(shape, banks)
        heads.heads.load_state_dict(state)
    return heads.eval().requires_grad_(False), about


def _check_classes(config: FusionConfig, store: FeatureStore) -> None:
    """The number of classes is the data set's."""
    count = len(store.classes)
    if count < 2:
        raise UserError(f"{store.path} has {count} classes; a head needs at least two")
    if config.classes is not None and config.classes < count:
        raise UserError(f"--classes {config.classes}: {config.dataset} has {count} classes")
    if config.classes is not None and config.classes > count:
        warn(f"--classes {config.classes}: {config.dataset} has {count} classes here, which is used")


def train(config: FusionConfig) -> int:
    """Train both heads and write them; returns the exit code (1 if too many clips could not be read)."""
    bank, about = load_converters(config.converters)
    with sole_writer(config.save_dir):
        return _train(config, bank, about)


def _train(config: FusionConfig, bank: ConverterBank, about: dict[str, Any]) -> int:
    store, _, code = get_store(config, config.features, config.save_dir / "cache")
    check_fit(bank, about, store, config.converters)
    _check_classes(config, store)
    held = held_out_rows(config, about, store, config.seed)
    place, share = config.save_dir, config.labels_fraction
    controls = fit_controls(bank, store, held, config.seed) if config.controls else {}
    phase, clips, folder = fit_heads(
        config, bank, store, held, place, config.seed, labels_fraction=share, controls=controls, track=config.track
    )
    _save(config, phase, store, clips)
    keep_log(folder, config.save_dir)
    return code


def fit_controls(bank: ConverterBank, store: FeatureStore, held: Tensor, seed: int) -> dict[str, ConverterBank]:
    """The banks of `control_banks` for a store."""
    teachers = {name: store.features(name) for name in bank.dims}
    return control_banks(bank, store.features(store.student), teachers, held, seed)


def fit_heads(
    config: HeadConfig,
    bank: ConverterBank,
    store: FeatureStore,
    held: Tensor,
    place: Path,
    seed: int,
    *,
    labels_fraction: float = 1.0,
    controls: Mapping[str, ConverterBank] | None = None,
    equal_updates: bool = False,
    track: Sequence[str] = (),
) -> tuple[FusionPhase, dict[str, int], Path]:
    """Train the fusion head and its student-only control (and the `controls`) on a share of the labels.

    Returns the trained phase on the CPU, how many clips trained it and chose its epoch, and the folder of the run under
    `place`. Passes are over the labelled clips; with `equal_updates` there are as many updates as with all labels.
    """
    x, labels = store.features(store.student), store.labels()
    set_seed(seed)
    banks = {"fusion": bank, **(controls or {})}
    heads = HeadSet(HeadShape(x.shape[1], bank.dims, config.hidden, len(store.classes)), banks)
    heads.fit_inputs(x[~held])
    labelled = keep_fraction(labels.tolist(), ~held, labels_fraction, seed)
    data = CachedFeatures({"student": x[labelled]}, labels[labelled])
    phase = FusionPhase(heads, CachedFeatures({"student": x}, labels).batch(held.nonzero().flatten()))
    per_epoch = -(-(int((~held).sum()) if equal_updates else len(data)) // config.batch)
    settings = FitSettings(
        steps=config.epochs * per_epoch,
        batch=min(config.batch, len(data)),
        lr=config.lr,
        save_every=per_epoch,
        eval_every=per_epoch,
        seed=seed,
    )
    engine = PlainEngine(phase, build_adamw(phase, config.lr, config.weight_decay), get_device(config.device))
    depends = {"features": store.fingerprint, "converters": sha256_file(config.converters), "hidden": config.hidden}
    depends |= {"holdout": config.holdout, "weight_decay": config.weight_decay, "labels": labels_fraction}
    depends |= {"controls": sorted(controls or {})}
    # named by all that the run depends on: the same line continues a killed run, another line starts its own
    folder = place / f"run-{sha256_json([asdict(settings), depends])[:12]}"
    fit(engine, len(data), data.batch, settings, folder, name="fusion", about=depends, track=track)
    return phase.cpu(), {"train": len(data), "held_out": int(held.sum()), "updates_an_epoch": per_epoch}, folder


def held_out_rows(config: HeadConfig, about: dict[str, Any], store: FeatureStore, seed: int) -> Tensor:
    """The converters' own held-out part where they were fitted on these clips: elsewhere translations are in-sample,
    and an epoch chosen there would flatter the fusion head alone."""
    labels, share = store.labels(), config.holdout
    if about["fingerprint"] == store.fingerprint:
        share, seed = about["holdout"]["share"], about["holdout"]["seed"]
    held = hold_out(store.groups, labels.tolist(), share, seed)
    present = set(labels[~held].tolist())
    lacking = [name for k, name in enumerate(store.classes) if k not in present]
    if lacking:
        shown = ", ".join(lacking[:5])
        warn(f"{len(lacking)} of {len(store.classes)} classes have no training clip and can't be predicted: {shown}")
    return held


def _save(config: FusionConfig, phase: FusionPhase, store: FeatureStore, clips: dict[str, int]) -> Path:
    path = config.save_dir / f"fusion_ep{config.epochs}.pt"
    shape = HeadShape(store.spaces[store.student]["dim"], phase.set.bank.dims, config.hidden, len(store.classes))
    epochs = {name: round(step / clips["updates_an_epoch"]) for name, step in phase.best_steps().items()}
    scores = phase.scores(phase.best_set)
    params = {name: num_params(head) for name, head in phase.set.heads.items()}
    gates, verdict = phase.gates(), phase.choice()
    about = {
        "format": FORMAT,
        "format_version": VERSION,
        "shape": asdict(shape),
        "classes": store.classes,
        "converters": str(config.converters),
        "converters_sha256": sha256_file(config.converters),
        "train_fingerprint": store.fingerprint,
        "train_ids": store.ids,
        "best_epoch": epochs,
        "held_out": scores,
        "clips": {k: clips[k] for k in ("train", "held_out")},
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
    states = {"heads": {name: head.state_dict() for name, head in phase.best_set.heads.items()}}
    save_torch(path, about | states | {"control_banks": phase.set.control_maps()})
    told = {k: v for k, v in about.items() if k != "train_ids"}
    write_sealed(config.save_dir / "run.json", run_info("train-fusion", config) | {"result": told})
    for name in phase.set.heads:
        say(
            f"{LABELS[name]}: {params[name]} parameters, best epoch {epochs[name]} of {config.epochs}, "
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
