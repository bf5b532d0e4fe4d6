"""Phase 1, pretrain: from its configuration encoder, data and phase, and the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from polyspace.data.clip_source import all_failed
from polyspace.models.vjepa.predictor import Predictor
from polyspace.models.vjepa.saved import save_encoder
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.report.chunk_figures import write_pictures
from polyspace.train.checkpoint import latest_step
from polyspace.train.clips import Source, build_source, check_clips, input_of
from polyspace.train.encoders import build_encoder, encoder_values, recipe
from polyspace.train.loop import fit
from polyspace.train.machine import Machine
from polyspace.train.settings import fit_settings
from polyspace.train.vjepa.jepa import JepaPhase, JepaSettings, Weights
from polyspace.train.vjepa.looks import COUNTED, SHOWN, looks_at, mistakes, tokens_and_motion
from polyspace.train.vjepa.masking import MaskPlan
from polyspace.train.vjepa.pretrain_config import PretrainConfig
from polyspace.utils.checkpoint_io import sha256_file, write_sealed
from polyspace.utils.distrib import once
from polyspace.utils.errors import UserError
from polyspace.utils.flops import num_params
from polyspace.utils.log import say
from polyspace.utils.looks_file import Looks, save_looks
from polyspace.utils.reading import read_json_lines


def build_phase(encoder: HNetViT | TubeletViT, config: PretrainConfig, seed: int) -> JepaPhase:
    """Encoder and predictor as one phase."""
    c = config
    layers = len(encoder.vit.blocks) + 1
    if c.target_layers > layers:
        raise UserError(f"pretrain.target_layers is {c.target_layers}, but there are {layers} with the input")
    weights = Weights(
        context=c.context_weight,
        variance=c.variance_weight,
        covariance=c.covariance_weight,
        vicregl=c.vicregl_weight,
        ratio=c.ratio_weight,
        entropy=c.entropy_weight,
        boundary=c.boundary_weight,
        cells_per_chunk=c.cells_per_chunk,
    )
    settings = JepaSettings(
        total_steps=c.steps,
        seed=seed,
        masks=MaskPlan(c.future_share, c.horizon, c.tube_ratios, c.block_scale),
        weights=weights,
        target=c.target,
        target_layers=c.target_layers or layers,
        chunk_weight_until=c.chunk_weight_until,
        energy=c.energy,
        still=c.still,
        ema=c.ema,
        ema_broadcast=c.ema_broadcast,
        budgets=c.budgets,
        budget_share=c.budget_share,
        region_share=c.region_share,
        monitor_every=c.log_every,
    )
    for key in ("budgets", "region_share", "entropy_weight", "boundary_weight"):
        if isinstance(encoder, TubeletViT) and getattr(c, key):
            raise UserError(f"pretrain.{key} has no meaning for arch tubelet")
    if c.region_share and not (isinstance(encoder, HNetViT) and encoder.routing.gate is not None):
        raise UserError("pretrain.region_share has no meaning for a fixed grid")
    if c.target == "chunk" and c.context_weight:
        raise UserError("pretrain.context_weight has no meaning for target chunk")
    try:
        predictor = Predictor(encoder.dim, c.predictor_width, c.predictor_depth, c.predictor_heads)
        return JepaPhase(encoder, predictor, settings)
    except ValueError as error:
        raise UserError(f"pretrain: {error}") from error


def run_pretrain(config: Any, folder: Path, machine: Machine) -> dict[str, Any]:
    """Train from where it stopped, write the target encoder and the pictures; returns the manifest's entry."""
    encoder = build_encoder(config.encoder)
    c: PretrainConfig = config.pretrain
    if c.ema_broadcast and machine.kind == "fsdp":
        raise UserError("pretrain.ema_broadcast has no meaning for --engine fsdp, where each rank has parts of its own")
    phase = build_phase(encoder, c, config.seed)
    check_clips(config.data, encoder, c.future_share)
    source, about = build_source(config.data, config.seed, folder)
    say(f"pretrain: {about['clips']} clips ({about['dataset']}), {num_params(encoder) / 1e6:.2f} M parameters")
    data = config.data.model_dump(mode="json", exclude={"workers", "max_failed"})
    depends = {"data": data | about, "encoder": encoder_values(config.encoder), "pretrain": c.model_dump(mode="json")}
    try:
        metrics = fit(
            machine.engine(phase, c),
            len(source),
            source.batch,
            fit_settings(c, config.seed),
            folder,
            name="pretrain",
            about=depends | {"precision": machine.precision},
            prefetch=source.prefetch,
            visits=True,
            track=machine.track,
        )
        failed = all_failed(source)
        return once(lambda: _written(config, folder, phase, about, source, machine.device)) | {
            "failed": failed,
            "last": metrics,
        }
    finally:
        source.close()


def _written(
    config: Any, folder: Path, phase: JepaPhase, about: dict[str, Any], source: Source, device: torch.device
) -> dict[str, Any]:
    """Write encoder, pictures and what they are made of; what the manifest says of them."""
    encoder, scale = phase.target.model, input_of(config.data)
    save_encoder(folder, encoder, recipe(config.encoder), about, scale)
    log = folder / "metrics.jsonl"
    history = read_json_lines(log, "metrics") if log.is_file() else []
    looks, files = look(folder, phase, source.first(COUNTED), scale, device)
    pictures = write_pictures(folder, history, looks)
    encoder_file = folder / "encoder.safetensors"
    return {
        "checkpoint": str(folder / latest_step(folder)),
        "sha256": {str(encoder_file): sha256_file(encoder_file)},
        "data": about,
        "first": history[0] if history else None,
        "pictures": [str(p) for p in pictures],
        **files,
    }


def look(
    folder: Path, phase: JepaPhase, clips: torch.Tensor | None, scale: dict[str, Any], device: torch.device
) -> tuple[Looks | None, dict[str, str]]:
    """Some clips as the target sees them, and tokens against motion, kept for reports; the files by what they hold."""
    if clips is None:
        return None, {}
    encoder = phase.target.model
    phase.eval()
    clips = clips.to(next(encoder.parameters()).dtype)
    shown = clips[:SHOWN].to(device)
    hidden, error = mistakes(phase, shown)
    looks = replace(looks_at(encoder, shown, scale), hidden=hidden, error=error)
    files = {"looks": str(save_looks(folder / "looks.safetensors", looks))}
    if isinstance(encoder, HNetViT):
        counted = folder / "tokens.json"
        write_sealed(counted, tokens_and_motion(encoder, clips, scale))
        files["tokens"] = str(counted)
    return looks, files
