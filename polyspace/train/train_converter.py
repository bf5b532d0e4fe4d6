"""python -m polyspace.train.train_converter: fit a converter from the student's space to each teacher's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from polyspace.config import parse, run_command
from polyspace.models.spaces.converters import (
    Converter,
    ConverterBank,
    LinearConverter,
    ResidualMLP,
    fit_converter,
    save_converters,
)
from polyspace.train.alignment.converter_phase import ConverterPhase, PairRows, parse_losses
from polyspace.train.alignment.converter_source import ConverterConfig, PairSource, warn_widths
from polyspace.train.alignment.gathering import Gathered
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.utils.checkpoint_io import sha256_json, write_sealed
from polyspace.utils.folders import sole_writer
from polyspace.utils.log import say, table
from polyspace.utils.metrics import knn_overlap, mean_cosine, r2_score
from polyspace.utils.misc import get_device, set_seed
from polyspace.utils.moments import Moments
from polyspace.utils.run_info import run_info
from polyspace.utils.standardise import Standardiser, fit_standardiser
from polyspace.utils.trackers import keep_log

CLOSED_FORMS = ("mean", "procrustes", "ridge")
SHOWN = {"r2": "R²", "cosine": "cosine", "cka_debiased": "debiased CKA", "cka": "CKA", "knn_overlap": "kNN overlap"}


@torch.no_grad()
def held_out_scores(converter: Converter, gathered: Gathered) -> dict[str, float]:
    """Scores on held-out rows: R² against the fitting part's mean, cosine, CKA of translated and true, kNN overlap.

    CKA and kNN need four rows and are left out below that; a constant translation scores 0 in both.
    """
    x, y = gathered.held_rows
    guess = torch.cat([converter(part) for part in x.split(4096)])
    scores = {"r2": r2_score(guess, y, gathered.fit.mean_y()), "cosine": mean_cosine(guess, y)}
    if len(x) < 4:
        return scores
    if isinstance(converter, LinearConverter) and converter.weight.abs().max() == 0:
        return scores | {"cka_debiased": 0.0, "cka": 0.0, "knn_overlap": 0.0}
    cka = Moments().update(guess, y)
    scores |= {"cka_debiased": cka.linear_cka(debiased=True), "cka": cka.linear_cka(debiased=False)}
    return scores | {"knn_overlap": knn_overlap(guess, y)}


def residual_bank(
    gathered: Mapping[str, Gathered], ridge: Mapping[str, LinearConverter], config: ConverterConfig
) -> tuple[ConverterBank, dict[str, Standardiser]]:
    """Untrained residual converters on top of ridge, and the spaces their losses are taken in."""
    standardisers, converters = {}, {}
    for name, part in gathered.items():
        standardisers[name] = fit_standardiser(part.fit.mean_y(), part.fit.cov_yy(), config.standardise)
        std = part.fit.cov_xx().diagonal().clamp_min(0).sqrt()
        converters[name] = ResidualMLP(ridge[name], config.hidden, part.fit.mean_x(), std, standardisers[name])
    return ConverterBank(converters), standardisers


def train_residual(
    gathered: Mapping[str, Gathered], ridge: Mapping[str, LinearConverter], config: ConverterConfig, about: Any
) -> tuple[ConverterBank, dict[str, int]]:
    """Residual MLPs at their best epoch on the held-out rows (0: the ridge solution), and these epochs."""
    set_seed(config.seed)
    bank, standardisers = residual_bank(gathered, ridge, config)
    held = {name: part.held_rows for name, part in gathered.items()}
    means = {name: part.fit.mean_y() for name, part in gathered.items()}
    losses = parse_losses(config.loss)
    phase = ConverterPhase(bank, standardisers, losses, held, means, config.teacher_drop, config.seed)
    rows = PairRows({name: part.rows for name, part in gathered.items()})
    per_epoch = -(-len(rows) // min(config.batch, len(rows)))
    settings = FitSettings(
        steps=config.epochs * per_epoch,
        batch=min(config.batch, len(rows)),
        lr=config.lr,
        save_every=per_epoch,
        eval_every=per_epoch,
        seed=config.seed,
    )
    depends = [about, losses, config.standardise, config.hidden, config.weight_decay, config.teacher_drop]
    depends += [config.teachers, config.holdout, config.tokens, config.tokens_per_clip, config.rows]
    # named by all that the run depends on: the same line continues a killed run, another line starts its own
    folder = config.save_dir / f"run-{sha256_json([asdict(settings), depends])[:12]}"

    engine = PlainEngine(phase, build_adamw(phase, config.lr, config.weight_decay), get_device(config.device))
    told: dict[str, Any] = {"name": "converters", "about": {"depends": sha256_json(depends)}, "track": config.track}
    fit(engine, len(rows), rows.batch, settings, folder, **told)
    keep_log(folder, config.save_dir)
    return phase.cpu().best_bank, {name: round(step / per_epoch) for name, step in phase.best_steps().items()}


def fit_bank(
    config: ConverterConfig, gathered: Mapping[str, Gathered], about: Any
) -> tuple[ConverterBank, dict[str, Any], dict[str, int]]:
    """Every kind for every teacher on the fitting part: the bank of `config.kind`, scores of all on the held-out part,
    and the epoch that each network was kept at."""
    made: dict[str, dict[str, Converter]] = {kind: {} for kind in CLOSED_FORMS}
    report: dict[str, Any] = {}
    for teacher, part in gathered.items():
        scores: dict[str, Any] = {}
        for kind in CLOSED_FORMS:
            converter, choice = fit_converter(kind, part.fit, part.held)
            made[kind][teacher] = converter
            scores[kind] = held_out_scores(converter, part) | choice
        cka = part.fit.linear_cka() if part.fit.n >= 4 else None
        counts = {"fitted_on": part.fit.n, "held_out": part.held.n, "scored_rows": len(part.held_rows[0])}
        report[teacher] = counts | {"kinds": scores, "student_teacher_cka_debiased": cka}
    epochs = {}
    if config.kind == "residual_mlp":
        ridge = {name: c for name, c in made["ridge"].items() if isinstance(c, LinearConverter)}
        bank, epochs = train_residual(gathered, ridge, config, about)
        for teacher, part in gathered.items():
            scores = held_out_scores(bank[teacher], part) | {"best_epoch": epochs[teacher]}
            report[teacher]["kinds"]["residual_mlp"] = scores
        return bank, report, epochs
    return ConverterBank(made[config.kind]), report, epochs


def report_lines(report: dict[str, Any], kind: str) -> list[str]:
    """The held-out table as Markdown; the kept kind is marked."""
    rows = []
    for teacher, entry in report.items():
        for name, scores in entry["kinds"].items():
            mark = " (kept)" if name == kind else ""
            shown = [f"{scores[k]:.3f}".replace("-0.000", "0.000") if k in scores else "–" for k in SHOWN]
            rows.append([teacher, name + mark, *shown])
    return list(table(rows, ["teacher", "converter", *SHOWN.values()]))


def _about(config: ConverterConfig, source: PairSource, report: dict[str, Any], epochs: dict[str, int]) -> dict:
    """What stands in the file beside the weights."""
    chosen = "closed form; ridge penalty by held-out squared error"
    if config.kind == "residual_mlp":
        chosen = "epoch of each network by held-out R² (0: the ridge solution); ridge penalty by held-out squared error"
    return {
        "kind": config.kind,
        "loss": config.loss if config.kind == "residual_mlp" else None,
        "tokens": config.tokens,
        "student": source.student,
        "features": str(config.features) if config.features else None,
        "features_absolute": str(config.features.resolve()) if config.features else None,
        "fingerprint": source.fingerprint,
        "sampling": source.settings["sampling"],
        "views": [source.settings["views"], source.settings["crops"]],
        "spaces": source.spaces,
        "holdout": {"share": config.holdout, "seed": config.seed},
        "best_epoch": epochs,
        "chosen_by": chosen,
        "held_out": report,
    }


def main(argv: Sequence[str]) -> int:
    config = parse(
        ConverterConfig,
        argv,
        prog="polyspace train-converter",
        about="Fit converters from the student's feature space to each teacher's.",
        example="python -m polyspace.train.train_converter --features ./features/features_hmdb51_train.json "
        "--teachers videomae timesformer vivit --d_in 768 --d_out 768 --epochs 10 --batch 128 --lr 1e-3 "
        "--save_dir ./checkpoints/converters",
    )
    parse_losses(config.loss)
    get_device(config.device)
    source = PairSource(config)
    warn_widths(config, source)
    with sole_writer(config.save_dir):
        _train(config, source)
    return 0


def _train(config: ConverterConfig, source: PairSource) -> None:
    if config.kind != "residual_mlp":
        say(f"{config.kind} has a closed form: --epochs, --batch and --lr change nothing but the file's name")
    gathered = source.gather()
    bank, report, epochs = fit_bank(config, gathered, source.fingerprint)
    path = config.save_dir / f"converters_ep{config.epochs}.pt"
    save_converters(path, bank, _about(config, source, report, epochs))
    write_sealed(config.save_dir / "converters_report.json", {"kind": config.kind, "teachers": report})
    write_sealed(config.save_dir / "run.json", run_info("train-converter", config))
    source.forget()
    first, unit = next(iter(report.values())), "tokens" if config.tokens else "clips"
    say(f"held-out scores ({first['held_out']} {unit}; fitted on {first['fitted_on']}):")
    for line in report_lines(report, config.kind):
        say(line)
    for teacher, epoch in epochs.items():
        kept = f"epoch {epoch} of {config.epochs}" if epoch else "the ridge solution: no epoch was better"
        say(f"{teacher}: kept {kept}")
    if source.stand_ins:
        say(f"(identity stand-ins: {', '.join(source.stand_ins)}; these numbers say nothing about those models)")
    say(f"-> {path}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
