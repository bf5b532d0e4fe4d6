"""python -m polyspace.train.train_converter: fit a converter from the student's space to each teacher's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import Config, parse, run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.models.spaces.converters import ConverterBank, LinearConverter, fit_converter, save_converters
from polyspace.utils.checkpoint_io import try_writing, write_json
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.holdout import hold_out
from polyspace.utils.log import Progress, say, table, warn
from polyspace.utils.metrics import knn_overlap, mean_cosine
from polyspace.utils.moments import Moments
from polyspace.utils.ridge import r2_from_moments
from polyspace.utils.run_info import run_info

COMPARED = ("mean", "procrustes", "ridge")
SHOWN = {"r2": "R²", "cosine": "cosine", "cka_debiased": "debiased CKA", "cka": "CKA", "knn_overlap": "kNN overlap"}


class ConverterConfig(Config):
    features: Path = Field(description="feature store of the training split")
    teachers: list[str] = Field(["videomae", "timesformer", "vivit"], description="spaces to convert to")
    kind: Literal["ridge", "procrustes"] = Field("ridge", description="ridge or procrustes; both are reported")
    d_in: int | None = Field(None, description="the student's width; a fact of the store, which wins")
    d_out: int | None = Field(None, description="the teachers' width; a fact of the store, which wins")
    epochs: int = Field(10, ge=1, description="goes into the file's name; closed forms need none")
    batch: int = Field(128, ge=1, description="rows a step; closed forms take all")
    lr: float = Field(1e-3, gt=0, description="learning rate; closed forms have none")
    save_dir: Path = Field(Path("checkpoints/converters"), description="folder of the result")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of source videos kept aside for choices and reports")
    seed: int = Field(0, ge=0, description="which videos are held out")


def check_spaces(store: FeatureStore, teachers: Sequence[str]) -> None:
    """Every teacher is a space of the store other than the student."""
    for name in teachers:
        if name == store.student:
            raise UserError(f"--teachers {name}: that is the student of {store.path}")
        if name not in store.spaces:
            raise UserError(f"--teachers {name} is not in {store.path}{did_you_mean(name, store.spaces)}")


def store_moments(store: FeatureStore, teacher: str, held: Tensor) -> tuple[Moments, Moments]:
    """(fitting part, held-out part) of the pairs (student, teacher), streamed shard by shard."""
    fit, held_out, start = Moments(), Moments(), 0
    for tensors in store.shards():
        x, y = tensors[store.student], tensors[teacher]
        mask = held[start : start + len(x)]
        fit.update(x[~mask], y[~mask])
        held_out.update(x[mask], y[mask])
        start += len(x)
    return fit, held_out


def held_out_scores(
    converter: LinearConverter, fit: Moments, held_out: Moments, x: Tensor, y: Tensor
) -> dict[str, float]:
    """Scores on the held-out clips: R² against the fitting part's mean, cosine, CKA of translated and true, kNN.

    CKA and kNN need four clips and are left out below that; a constant translation scores 0 in both.
    """
    with torch.no_grad():
        translated = converter(x)
    scores = {
        "r2": r2_from_moments(converter.weight.double(), converter.bias.double(), held_out, fit.mean_y()),
        "cosine": mean_cosine(translated, y),
    }
    if len(x) < 4:
        return scores
    if converter.weight.abs().max() == 0:
        return scores | {"cka_debiased": 0.0, "cka": 0.0, "knn_overlap": 0.0}
    cka = Moments().update(translated, y)
    scores |= {"cka_debiased": cka.linear_cka(debiased=True), "cka": cka.linear_cka(debiased=False)}
    return scores | {"knn_overlap": knn_overlap(translated, y)}


def _held_rows(store: FeatureStore, space: str, held: Tensor, most: int = 4000) -> Tensor:
    """The first `most` held-out rows of a space."""
    rows, start = [], 0
    for tensors in store.shards():
        block = tensors[space]
        rows.append(block[held[start : start + len(block)]])
        start += len(block)
    return torch.cat(rows)[:most]


def fit_bank(config: ConverterConfig, store: FeatureStore) -> tuple[ConverterBank, dict[str, Any]]:
    """Fit every kind for every teacher on the fitting part; keep `config.kind`, report all on the held-out part."""
    labels = [clip["label"] for clip in store.manifest["clips"]]
    held = hold_out(store.groups, labels, config.holdout, config.seed)
    chosen, report = {}, {}
    x = _held_rows(store, store.student, held)
    with Progress(len(config.teachers), "converters", "teacher") as bar:
        for teacher in config.teachers:
            fit, held_out = store_moments(store, teacher, held)
            y = _held_rows(store, teacher, held)
            scores = {}
            for kind in COMPARED:
                converter, choice = fit_converter(kind, fit, held_out)
                scores[kind] = held_out_scores(converter, fit, held_out, x, y) | choice
                if kind == config.kind:
                    chosen[teacher] = converter
            spaces = {"student_teacher_cka_debiased": fit.linear_cka() if fit.n >= 4 else None}
            report[teacher] = {"fitted_on": fit.n, "held_out": held_out.n, "kinds": scores, **spaces}
            bar.step()
    return ConverterBank(chosen), report


def _warn_widths(config: ConverterConfig, store: FeatureStore) -> None:
    d_in = store.spaces[store.student]["dim"]
    d_out = sorted({store.spaces[t]["dim"] for t in config.teachers})
    if config.d_in not in (None, d_in) or (config.d_out is not None and [config.d_out] != d_out):
        shown = "/".join(map(str, d_out))
        warn(f"--d_in {config.d_in} --d_out {config.d_out}: the store has {d_in} and {shown}, which are used")


def report_lines(report: dict[str, Any], kind: str) -> list[str]:
    """The held-out table as Markdown; the kept kind is marked."""
    rows = []
    for teacher, entry in report.items():
        for name, scores in entry["kinds"].items():
            mark = " (kept)" if name == kind else ""
            rows.append([teacher, name + mark, *(f"{scores[k]:.3f}" if k in scores else "–" for k in SHOWN)])
    return list(table(rows, ["teacher", "converter", *SHOWN.values()]))


def main(argv: Sequence[str]) -> int:
    config = parse(
        ConverterConfig,
        argv,
        prog="polyspace train-converter",
        about="Fit converters from the student's feature space to each teacher's, by streamed moments.",
        example="python -m polyspace.train.train_converter --features ./features/features_hmdb51_train.json "
        "--teachers videomae timesformer vivit --d_in 768 --d_out 768 --epochs 10 --batch 128 --lr 1e-3 "
        "--save_dir ./checkpoints/converters",
    )
    store = FeatureStore(config.features)
    check_spaces(store, config.teachers)
    _warn_widths(config, store)
    try_writing(config.save_dir)
    say(f"{config.kind} has a closed form: --epochs, --batch and --lr change nothing but the file's name")
    bank, report = fit_bank(config, store)
    path = config.save_dir / f"converters_ep{config.epochs}.pt"
    about = {
        "kind": config.kind,
        "student": store.student,
        "features": str(config.features),
        "features_absolute": str(config.features.resolve()),
        "fingerprint": store.fingerprint,
        "spaces": {name: store.spaces[name] for name in (store.student, *config.teachers)},
        "holdout": {"share": config.holdout, "seed": config.seed},
        "best_epoch": 0,
        "chosen_by": "closed form; ridge penalty by held-out squared error",
        "held_out": report,
    }
    save_converters(path, bank, about)
    write_json(config.save_dir / "converters_report.json", {"kind": config.kind, "teachers": report})
    write_json(config.save_dir / "run.json", run_info("train-converter", config))
    first = next(iter(report.values()))
    say(f"held-out scores ({first['held_out']} clips; fitted on {first['fitted_on']}):")
    for line in report_lines(report, config.kind):
        say(line)
    if store.stand_ins:
        say(f"(identity stand-ins: {', '.join(store.stand_ins)}; these numbers say nothing about those models)")
    say(f"-> {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
