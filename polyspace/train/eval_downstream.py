"""python -m polyspace.train.eval_downstream: what the fusion head, its control and the converters are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import parse, run_command
from polyspace.data import build_dataset
from polyspace.data.extract import Views
from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import SourceConfig
from polyspace.data.sampling import Sampling
from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.converters import ConverterBank, load_converters
from polyspace.report.eval_report import write_eval_files
from polyspace.train.alignment.cost import cost_table
from polyspace.train.alignment.fusion_phase import LABELS, HeadSet
from polyspace.train.alignment.layers import layer_likeness
from polyspace.train.alignment.retained import retained_table, teacher_heads
from polyspace.train.alignment.stores import check_fit, get_store
from polyspace.train.train_fusion import load_heads
from polyspace.utils.checkpoint_io import sha256_file, try_writing
from polyspace.utils.cka import CkaMeter
from polyspace.utils.errors import UserError
from polyspace.utils.folders import clear_left_over
from polyspace.utils.log import say, warn
from polyspace.utils.metrics import (
    bootstrap_interval,
    confusion_matrix,
    knn_overlap,
    mean_class_accuracy,
    mean_cosine,
    r2_score,
    top_k_hits,
)
from polyspace.utils.misc import get_device
from polyspace.utils.moments import Moments
from polyspace.utils.run_info import run_info


class EvalConfig(SourceConfig):
    split: str = Field("validation", description="train, validation or test")
    converters: Path = Field(description="file written by train-converter")
    fusion: Path = Field(description="file written by train-fusion")
    features: Path = Field(Path("features"), description="folder to look for a fitting feature store in")
    batch: int = Field(4, ge=1, description="clips a head's forward")
    out: Path | None = Field(None, description="folder of the results; none: beside --fusion")
    latency: bool = Field(True, description="measure latency (loads every backbone)")
    latency_budget: float = Field(10.0, gt=0, description="seconds of timing for each backbone and batch size")
    latency_batches: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 8], description="clips a call when latency and memory are measured"
    )
    layer_clips: int = Field(0, ge=0, description="clips on which the CKA of all layers is measured; 0: it is not")


def head_scores(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Top-1, top-5 and mean-class accuracy with a 95 % bootstrap interval over clips for the first."""
    top1, top5 = top_k_hits(logits, labels, 1), top_k_hits(logits, labels, 5)
    scores = {"top1": top1.mean().item(), "top5": top5.mean().item(), "mean_class": mean_class_accuracy(top1, labels)}
    return scores | {"top1_ci": list(bootstrap_interval(top1))}


@torch.inference_mode()
def _logits(x: Tensor, heads: HeadSet, batch: int) -> dict[str, Tensor]:
    parts = [heads(part) for part in x.split(batch)]
    return {name: torch.cat([part[name] for part in parts]) for name in heads.heads}


def _labelled(store: FeatureStore) -> tuple[Tensor, Tensor, int]:
    """Rows that have a label, their labels, and how many rows have none."""
    labels = [clip["label"] for clip in store.manifest["clips"]]
    rows = torch.tensor([i for i, label in enumerate(labels) if label is not None])
    if not len(rows):
        raise UserError(f"{store.path}: no clip has a label; there is nothing to score against")
    return rows, torch.tensor([labels[i] for i in rows.tolist()]), len(labels) - len(rows)


def translation_scores(
    store: FeatureStore, bank: ConverterBank, train: FeatureStore | None
) -> dict[str, dict[str, float]]:
    """How well translated features match the true ones on these clips; R² against the training mean where known."""
    x = store.features(store.student)
    out = {}
    with torch.inference_mode():
        translated = bank(x)
    for name, guess in translated.items():
        true = store.features(name)
        mean = (train.features(name) if train is not None else true).double().mean(0)
        scores = {"r2": r2_score(guess, true, mean), "cosine": mean_cosine(guess, true)}
        if len(x) >= 4:
            moments = Moments().update(guess, true)
            scores |= {"cka_debiased": moments.linear_cka(True), "cka": moments.linear_cka(False)}
            scores["knn_overlap"] = knn_overlap(guess, true)
        out[name] = scores
    return out


def space_likeness(store: FeatureStore, bank: ConverterBank, most: int = 2000) -> dict[str, Any] | None:
    """Debiased CKA between the true spaces and the translated ones, over the first `most` clips; None below four."""
    if len(store) < 4:
        return None
    x = store.features(store.student)[:most]
    rows = {store.student: x} | {name: store.features(name)[:most] for name in bank.dims}
    with torch.inference_mode():
        rows |= {f"{name}, translated": guess for name, guess in bank(x).items()}
    meter = CkaMeter(list(rows))
    meter.update(rows)
    return {"spaces": list(rows), "debiased": meter.matrix().tolist()}


def _layers(
    config: EvalConfig, store: FeatureStore, cards: dict[str, BackboneCard], device: torch.device
) -> dict[str, Any] | None:
    """CKA between the layers of all backbones on clips spread over the split, if it is asked for."""
    if not config.layer_clips:
        return None
    options = {"fold": config.fold, "annotations": config.annotations, "list_file": config.list_file}
    places = {r.id: r.path for r in build_dataset(config.dataset, config.root, config.split, **options).records}
    count = min(config.layer_clips, len(store))
    chosen = [store.ids[i * len(store) // count] for i in range(count)]
    return layer_likeness(cards, [places[i] for i in chosen], Views(Sampling.parse(config.sampling)), device)


def _train_store(about: dict[str, Any]) -> FeatureStore | None:
    """The features that the converters were fitted on, by the path recorded in their file."""
    for recorded in filter(None, (about["features"], about["features_absolute"])):
        path = Path(recorded)
        if path.is_file():
            store = FeatureStore(path)
            if store.fingerprint == about["fingerprint"]:
                return store
    where = about["features"] or "a stream"
    warn(f"the converters' training features ({where}) are not there to read; R² uses this split's mean")
    return None


def evaluate(config: EvalConfig) -> tuple[dict[str, Any], int]:
    """Score heads and converters on one split and write eval_{dataset}_{split}.json, .md and pictures.

    Returns the result and the exit code (1 if too many clips could not be read).
    """
    bank, about = load_converters(config.converters)
    heads, fusion_about = load_heads(config.fusion, bank)
    if fusion_about["converters_sha256"] != sha256_file(config.converters):
        raise UserError(f"{config.fusion} was trained with other converters than {config.converters}")
    out = config.out or config.fusion.parent
    try_writing(out)
    clear_left_over(out)
    store, cards, code = get_store(config, config.features, out / "cache")
    check_fit(bank, about, store, config.converters)
    if store.classes != fusion_about["classes"]:
        raise UserError(f"{store.path} has other classes than {config.fusion} was trained on")
    seen = len(set(store.ids) & set(fusion_about["train_ids"]))
    if seen:
        warn(f"{seen} of {len(store)} clips were in training; the scores say nothing about new clips")
    rows, labels, unlabelled = _labelled(store)
    logits = _logits(store.features(store.student)[rows], heads, config.batch)
    fused, alone = logits["fusion"], logits["student"]
    device = get_device(config.device)
    costs = cost_table(
        cards,
        config.student,
        bank,
        heads.fusion,
        device,
        batches=config.latency_batches if config.latency else (),
        budget_s=config.latency_budget,
    )
    train = _train_store(about)
    labelled = train is not None and all(clip["label"] is not None for clip in train.manifest["clips"])
    result = {
        "format": "polyspace.eval",
        "format_version": 1,
        "dataset": config.dataset,
        "split": config.split,
        "generated": store.manifest.get("generated", False),
        "clips": _counts(store, len(rows), unlabelled) | {"seen_in_training": seen},
        "stand_ins": store.stand_ins,
        "student": store.student,
        "spaces": store.spaces,
        "classes": store.classes,
        "chance": 1 / len(labels.unique()),
        "heads": {LABELS[name]: head_scores(z, labels) for name, z in logits.items()},
        "difference": _difference(fused, alone, labels),
        **_of_training(fusion_about),
        "translation": translation_scores(store, bank, train),
        "cka": space_likeness(store, bank),
        "layers": _layers(config, store, cards, device),
        "retained": retained_table(train, store, bank, about["holdout"]) if train is not None and labelled else None,
        "teacher_heads": teacher_heads(cards, store, bank),
        "converter_kind": about["kind"],
        "converters_held_out": about["held_out"],
        "per_class": _per_class(store.classes, fused, alone, labels),
        "confusion": confusion_matrix(fused.argmax(1), labels, len(store.classes)).tolist(),
        "cost": costs,
        "run": run_info("eval", config),
    }
    write_eval_files(result, out)
    return result, code


def _of_training(about: dict[str, Any]) -> dict[str, Any]:
    """What the heads' file says of their training."""
    kept = ("gates", "gates_std", "choice", "held_out", "best_epoch")
    params = {LABELS[name]: count for name, count in about["params"].items()}
    return {"params": params} | {key: about[key] for key in kept} | {"training_clips": about["clips"]}


def _counts(store: FeatureStore, evaluated: int, unlabelled: int) -> dict[str, int]:
    failed, missing = len(store.manifest["failed"]), len(store.manifest["missing"])
    listed = len(store) + failed + missing
    return {"evaluated": evaluated, "listed": listed, "failed": failed, "missing": missing, "unlabelled": unlabelled}


def _difference(fused: Tensor, alone: Tensor, labels: Tensor) -> dict[str, Any]:
    """Fusion less student-only, top-1, paired over clips."""
    gain = top_k_hits(fused, labels, 1) - top_k_hits(alone, labels, 1)
    low, high = bootstrap_interval(gain)
    verdict = "fusion helps" if low > 0 else "fusion hurts" if high < 0 else "no difference shown"
    return {"top1": gain.mean().item(), "ci": [low, high], "verdict": verdict}


def _per_class(classes: list[str], fused: Tensor, alone: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    hits = {"fusion": top_k_hits(fused, labels, 1), "student only": top_k_hits(alone, labels, 1)}
    rows = []
    for k, name in enumerate(classes):
        mine = labels == k
        if mine.any():
            rows.append({"class": name, "clips": int(mine.sum())} | {h: v[mine].mean().item() for h, v in hits.items()})
    return rows


def main(argv: Sequence[str]) -> int:
    config = parse(
        EvalConfig,
        argv,
        prog="polyspace eval",
        about="Score the fusion head, its student-only control and the converters on a split; count what each costs.",
        example="python -m polyspace.train.eval_downstream --dataset hmdb51 --root ./datasets/hmdb51 "
        "--split validation --student vjepa2 --teachers videomae timesformer vivit "
        "--converters ./checkpoints/converters/converters_ep10.pt --fusion ./checkpoints/fusion/fusion_ep5.pt "
        "--frames 16 --batch 4",
    )
    result, code = evaluate(config)
    clips = result["clips"]
    say(f"{clips['evaluated']} of {clips['listed']} clips ({clips['failed']} failed, {clips['missing']} missing)")
    for name, scores in result["heads"].items():
        low, high = scores["top1_ci"]
        say(
            f"{name}: top-1 {scores['top1']:.3f} [{low:.3f}, {high:.3f}], top-5 {scores['top5']:.3f}, "
            f"mean class {scores['mean_class']:.3f}"
        )
    low, high = result["difference"]["ci"]
    difference = result["difference"]
    say(f"fusion − student only: {difference['top1']:+.3f} [{low:+.3f}, {high:+.3f}]: {difference['verdict']}")
    folder = config.out or config.fusion.parent
    say(f"-> {folder / f'eval_{config.dataset}_{config.split}.md'}")
    return code


if __name__ == "__main__":
    raise SystemExit(run_command(main))
