"""Phase 3, probe: a classifier on a pretrained encoder's chunks, beside the same on random features."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from polyspace.data.batch import VideoBatch
from polyspace.data.captions import attribute_names
from polyspace.data.clip_source import all_failed
from polyspace.losses.energy import energy, global_mean
from polyspace.models.heads import AttentiveHead, Pooling, WeighedHead
from polyspace.models.vjepa.saved import make_encoder
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.clips import Parts, build_parts, check_clips
from polyspace.train.downstream.common import (
    PhaseConfig,
    Start,
    Unfreeze,
    curves,
    entry,
    fit_phase,
    link,
    load_start,
    note,
    save_learned,
)
from polyspace.train.downstream.saved_probe import save_probe
from polyspace.train.downstream.tokens import TokenReader, Tokens, batches, encode_source
from polyspace.train.machine import Machine
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.distrib import once
from polyspace.utils.errors import UserError
from polyspace.utils.log import say
from polyspace.utils.metrics import average_precision, bootstrap_interval, top_k_hits


class ProbeConfig(PhaseConfig):
    steps: int = Field(1000, ge=1, description="updates")
    batch: int = Field(64, ge=1, description="clips an update")
    lr: float = Field(1e-2, gt=0, description="highest learning rate of AdamW; 1e-3 suits pooling attentive")
    eval_every: int = Field(
        100, ge=0, description="updates between evaluations on the held-out part; 0 at the end only"
    )
    pooling: Pooling = Field("mean", description="of the chunks: mean (a linear probe), attentive, saliency or cam")
    loss: Literal["ce", "bce"] = Field("ce", description="one class a clip, or any number of them (logits each)")
    labels: Literal["class", "attributes"] = Field(
        "class", description="generated clips: motion, or shapes and colours"
    )
    saliency_weight: float = Field(
        0.0, ge=0, description="pooling cam: of agreement of its weights with saliency labels"
    )
    coherence_weight: float = Field(0.0, ge=0, description="of the energy between salient chunks and their own mean")
    unfreeze: Unfreeze = Field("none", description="what of the encoder learns: none, routing or all")
    control: bool = Field(True, description="train the same probe on a random encoder too, and report it")
    clips: int = Field(512, ge=2, description="labelled generated clips to train on")
    held_out: int = Field(1000, ge=2, description="generated clips held out")


class ProbePhase(Phase):
    """loss = cross entropy (or binary cross entropy of each class) + weights · (saliency agreement, coherence)."""

    mean: Tensor
    std: Tensor

    def __init__(self, reader: TokenReader, head: AttentiveHead | WeighedHead, config: ProbeConfig, dim: int) -> None:
        super().__init__()
        self.reader, self.head, self.config = reader, head, config
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.held: Any = None

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.label is not None
        seen = self.see(batch)
        logits = self.logits(seen)
        loss = self.classify(logits, batch.label)
        metrics: dict[str, Tensor] = {self.config.loss: loss.detach()}
        for name, weight, value in self.terms(seen):
            loss = loss + weight * value
            metrics[name] = value.detach()
        return StepOutput(loss, metrics)

    def see(self, batch: VideoBatch) -> Tokens:
        """Tokens by the training part's mean and standard deviation; padding stays 0."""
        seen = self.reader(batch)
        tokens = (seen.tokens - self.mean) / self.std
        return replace(seen, tokens=torch.where(seen.valid[..., None], tokens, 0))

    def logits(self, seen: Tokens) -> Tensor:
        if isinstance(self.head, AttentiveHead):
            return self.head(seen.tokens, seen.valid)
        return self.head(seen.tokens, seen.valid, seen.saliency)

    def classify(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.config.loss == "ce":
            return F.cross_entropy(logits, label)
        target = label if label.ndim == 2 else F.one_hot(label, logits.shape[1])
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    def terms(self, seen: Tokens) -> list[tuple[str, float, Tensor]]:
        """What is added to the classification, where it is switched on and the batch has saliency labels."""
        c, out = self.config, []
        if seen.saliency is None:
            return out
        if c.saliency_weight and isinstance(self.head, WeighedHead):
            weight = self.head.weights(seen.tokens, seen.valid)
            goal = seen.saliency / seen.saliency.sum(1, keepdim=True).clamp_min(1e-6)
            shown = seen.saliency.sum(1) > 0
            cross = -(goal * weight.clamp_min(1e-9).log()).sum(1)
            out.append(("saliency", c.saliency_weight, global_mean(cross, shown)))
        if c.coherence_weight:
            out.append(("coherence", c.coherence_weight, coherence(seen.tokens, seen.saliency)))
        return out

    def evaluate(self, step: int) -> dict[str, Any]:
        scores, labels = self.scores()
        if labels.ndim == 2 or self.config.loss == "bce":
            target = labels if labels.ndim == 2 else F.one_hot(labels, scores.shape[1])
            right = ((scores > 0) == target.bool()).double().mean().item()
            return {"mean_average_precision": average_precision(scores, target.float()), "binary_accuracy": right}
        hits = top_k_hits(scores, labels, 1)
        low, high = bootstrap_interval(hits)
        return {"accuracy": hits.mean().item(), "accuracy_low": low, "accuracy_high": high}

    def scores(self) -> tuple[Tensor, Tensor]:
        """Logits and labels of the held-out clips."""
        logits, labels = [], []
        for batch in batches(self.held):
            assert batch.label is not None
            logits.append(self.logits(self.see(batch.to(self.mean.device))).cpu())
            labels.append(batch.label.cpu())
        return torch.cat(logits), torch.cat(labels)


def coherence(tokens: Tensor, saliency: Tensor) -> Tensor:
    """Mean over salient chunks, weighed by their saliency, of 1 − cos to their clip's saliency-weighted mean: what
    shows the object should agree about it. tokens (B,M,D), saliency (B,M) ≥ 0."""
    total = saliency.sum(1, keepdim=True).clamp_min(1e-6)
    centre = (tokens * saliency[..., None]).sum(1, keepdim=True) / total[..., None]
    apart = energy(tokens, centre.expand_as(tokens), "cosine")
    return global_mean(apart, saliency)


def build_head(config: ProbeConfig, dim: int, classes: int) -> AttentiveHead | WeighedHead:
    if config.pooling == "attentive":
        return AttentiveHead(dim, classes)
    return WeighedHead(dim, classes, config.pooling)


def check_probe(config: Any) -> None:
    """UserError for settings that contradict one another."""
    c: ProbeConfig = config.probe
    if c.loss == "ce" and c.labels == "attributes":
        raise UserError("probe.labels attributes are several a clip: use probe.loss bce")
    if c.saliency_weight and c.pooling != "cam":
        raise UserError(f"probe.saliency_weight has no meaning for probe.pooling {c.pooling}; it steers cam")
    if c.coherence_weight and c.unfreeze == "none":
        raise UserError("probe.coherence_weight has no meaning while nothing of the encoder learns: set probe.unfreeze")
    files = config.data.dataset != "generated"
    if files and (c.pooling == "saliency" or c.saliency_weight or c.coherence_weight):
        raise UserError(f"probe: data.dataset {config.data.dataset} has no saliency labels; use mean, attentive or cam")
    if files and c.labels == "attributes":
        raise UserError("probe.labels attributes are known of generated clips only; use class")


def run_probe(config: Any, folder: Path, machine: Machine) -> dict[str, Any]:
    """Train the probe, and its control on random features; writes probe.safetensors; returns the manifest's entry."""
    c: ProbeConfig = config.probe
    start = load_start(config, "probe")
    check_clips(config.data, start.encoder)
    cells = (start.encoder.unit, start.encoder.unit_frames) if config.data.dataset == "generated" else None
    sizes = (c.clips, c.held_out)
    parts = build_parts(
        config.data, config.seed, folder, start.scale, need="label", generated=sizes, cells=cells, kind=c.labels
    )
    try:
        return _run(config, c, start, parts, folder, machine)
    finally:
        parts.close()


def _run(config: Any, c: ProbeConfig, start: Start, parts: Parts, folder: Path, machine: Machine) -> dict[str, Any]:
    note("probe", start, parts.about)
    names = attribute_names() if c.labels == "attributes" else parts.classes
    depends = {"data": parts.about, "encoder": start.sha256, "probe": c.model_dump(mode="json")}
    first, last, phase = train_probe(config, c, start.encoder, parts, len(names), folder, machine, depends)
    about = {"pooling": c.pooling, "loss": c.loss, "classes": names, "dim": start.encoder.dim} | link(folder, start)
    key = "accuracy" if c.loss == "ce" else "mean_average_precision"
    control = None
    if c.control:
        torch.manual_seed(config.seed)
        random = make_encoder(start.values).eval()
        _, control, _ = train_probe(config, c, random, parts, len(names), folder / "random_encoder", machine, depends)
    beside = "" if control is None else f", {control[key]:.3f} on a random encoder"
    say(f"probe: {key.replace('_', ' ')} {last[key]:.3f} on {parts.about['held_out']} held-out clips{beside}")
    failed = all_failed(parts.train, parts.held)

    def written() -> dict[str, Any]:
        file = save_probe(folder, phase.head, phase.mean, phase.std, about)
        files = [file, *save_learned(folder, start, phase.reader.encoder, c.unfreeze)]
        pictures = curves(folder, {key: key.replace("_", " ")}, "held-out clips")
        return entry(folder, start, files, parts.about, first, last) | {"pictures": pictures}

    return once(written) | {
        "random_encoder": control,
        "chance": 1 / len(names) if c.loss == "ce" else None,
        "failed": failed,
    }


def train_probe(
    config: Any,
    c: ProbeConfig,
    encoder: HNetViT | TubeletViT,
    parts: Parts,
    classes: int,
    folder: Path,
    machine: Machine,
    depends: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], ProbePhase]:
    """Held-out metrics before and after, and the trained phase."""
    source: Any = parts.train
    held: Any = parts.held
    device = machine.device
    cached: Any = encode_source(
        encoder, parts.train, device, "probe", float("inf") if c.unfreeze != "none" else c.cache_gib
    )
    if c.unfreeze == "none":
        held = encode_source(encoder, parts.held, device, "probe, held out", float("inf"))
        source = cached or source
    reader = TokenReader(None if source is cached else encoder, c.unfreeze)
    torch.manual_seed(config.seed)
    phase = ProbePhase(reader, build_head(c, encoder.dim, classes), c, encoder.dim)
    phase.held = held
    if cached is not None:
        rows = cached.features["tokens"][cached.valid]
        phase.mean.copy_(rows.mean(0))
        phase.std.copy_(rows.std(0).clamp_min(1e-6))
    prefetch = None if source is cached else parts.train.prefetch
    first, last = fit_phase("probe", phase.to(device), source, c, config.seed, folder, machine, depends, prefetch)
    return first, last, phase
