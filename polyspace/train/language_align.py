"""Phase 2, language: clips and sentences in one space, over a frozen (or partly trained) encoder."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from polyspace.data.batch import VideoBatch
from polyspace.data.captions import TEMPLATES
from polyspace.data.clip_source import all_failed
from polyspace.losses.contrastive import nt_xent_loss
from polyspace.losses.energy import aligned_energy_loss
from polyspace.models.language import TextEncoder, TwoTowers, build_text_encoder, check_text_encoder
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
from polyspace.train.downstream.tokens import TokenReader, batches, encode_source
from polyspace.train.machine import Machine
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.checkpoint_io import (
    load_built,
    load_strict,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    write_sealed,
)
from polyspace.utils.distrib import once
from polyspace.utils.errors import UserError
from polyspace.utils.log import say
from polyspace.utils.metrics import recall_at

RETRIEVED = 100  # distinct held-out captions among which retrieval is measured
AT = (1, 5, 10)


class LanguageConfig(PhaseConfig):
    steps: int = Field(1500, ge=1, description="updates")
    batch: int = Field(64, ge=2, description="clips an update; each is the others' negative")
    text_encoder: str = Field("dummy", description="dummy, minilm, clip or bert; clip=FOLDER_OR_ID, bert=FOLDER_OR_ID")
    dim: int = Field(128, ge=2, description="width of the common space")
    temperature: float = Field(0.07, gt=0, description="at the start; it is learned, within 0.01 and 1")
    energy_weight: float = Field(0.1, ge=0, description="of the energy between a clip and its caption")
    unfreeze: Unfreeze = Field("none", description="what of the encoder learns: none, routing or all")
    skip_uncaptioned: bool = Field(False, description="leave clips without a caption out; else they are an error")
    clips: int = Field(3000, ge=2, description="generated clips to train on")
    held_out: int = Field(500, ge=2, description="generated clips held out")
    templates: tuple[str, ...] = Field(TEMPLATES, min_length=1, description="sentences about a class, {} is its name")


class LanguagePhase(Phase):
    """loss = NT-Xent(clip, caption) + weight · aligned energy. Clips of one caption are no negatives of each other."""

    def __init__(self, reader: TokenReader, towers: TwoTowers, text: "Sentences", energy_weight: float) -> None:
        super().__init__()
        self.reader, self.towers, self.text, self.energy_weight = reader, towers, text, energy_weight
        self.held: Any = None
        self.captions: list[str] = []
        self.classes: list[str] = []
        self.templates: tuple[str, ...] = TEMPLATES

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.text is not None
        seen = self.reader(batch)
        if len(batch.text) != len(seen.tokens):
            raise UserError(f"{len(batch.text)} captions for {len(seen.tokens)} clips")
        video = self.towers.embed_video(seen.tokens, seen.valid)
        text = self.towers.embed_text(self.text(batch.text, video.device))
        same = self.text.numbers(batch.text).to(video.device)
        contrast = nt_xent_loss(video, text, self.towers.temperature, same)
        energy = aligned_energy_loss(video, text)
        metrics = {"nt_xent": contrast, "energy": energy, "temperature": self.towers.temperature}
        return StepOutput(contrast + self.energy_weight * energy, {k: v.detach() for k, v in metrics.items()})

    def embed_held(self) -> tuple[Tensor, list[str], Tensor | None]:
        """Vectors, captions and labels of the held-out clips."""
        video, text, label = [], [], []
        device = self.towers.log_temperature.device
        for batch in batches(self.held):
            seen = self.reader(batch.to(device))
            video.append(self.towers.embed_video(seen.tokens, seen.valid))
            text += batch.text or []
            if batch.label is not None:
                label.append(batch.label)
        return torch.cat(video), text, torch.cat(label) if label else None

    def evaluate(self, step: int) -> dict[str, Any]:
        video, text, label = self.embed_held()
        rows, unseen = retrieved_rows(text, set(self.captions))
        out: dict[str, Any] = {"retrieved_among": len(rows), "unseen_captions": unseen}
        if len(rows) > 1:
            words = self.embed_text([text[i] for i in rows])
            similarity = video[rows] @ words.T
            for way, matrix in (("video_to_text", similarity), ("text_to_video", similarity.T)):
                out |= {f"{way}_r{k}": v for k, v in recall_at(matrix, AT).items()}
        if label is not None and self.classes and bool((label >= 0).any()):
            out["zero_shot"] = self.zero_shot(video, label)
        return out

    def embed_text(self, text: Sequence[str]) -> Tensor:
        return self.towers.embed_text(self.text(text, self.towers.log_temperature.device))

    def zero_shot(self, video: Tensor, label: Tensor) -> float:
        """Top-1 of the class whose sentences, on average over the templates, are nearest."""
        with torch.no_grad():
            vectors = [self.embed_text([t.replace("{}", name) for name in self.classes]) for t in self.templates]
        labelled = label >= 0
        guess = (video[labelled] @ torch.stack(vectors).mean(0).T).argmax(1).cpu()
        return (guess == label[labelled]).double().mean().item()


def retrieved_rows(text: Sequence[str], trained_on: set[str]) -> tuple[list[int], bool]:
    """The first clip of each of the first `RETRIEVED` distinct captions that no training clip has; of any distinct
    captions (False) where fewer than two are left so."""
    first = {t: i for i, t in reversed(list(enumerate(text)))}
    new = [i for t, i in first.items() if t not in trained_on]
    unseen = len(new) > 1
    return sorted(new if unseen else first.values())[:RETRIEVED], unseen


class Sentences(torch.nn.Module):
    """Sentences -> vectors by a text encoder. A frozen one is asked once for each sentence; it is no part of the
    state, so that checkpoints don't carry it."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.trained = encoder if encoder.trained else None
        self._frozen = (encoder,)
        self._known: dict[str, Tensor] = {}

    @property
    def dim(self) -> int:
        return self._frozen[0].dim

    def forward(self, text: Sequence[str], device: torch.device) -> Tensor:
        if self.trained is not None:
            return self.trained(text)
        new = sorted({t for t in text if t not in self._known})
        for start in range(0, len(new), 64):
            block = new[start : start + 64]
            self._known |= dict(zip(block, self._frozen[0](block).cpu(), strict=True))
        return torch.stack([self._known[t] for t in text]).to(device)

    def numbers(self, text: Sequence[str]) -> Tensor:
        """Equal numbers for equal sentences, on every rank (but for one pair in four thousand million)."""
        return torch.tensor([zlib.crc32(t.encode()) for t in text])


def check_language(config: Any) -> None:
    """UserError where the text encoder is unknown or its weights' package is missing."""
    check_text_encoder(config.language.text_encoder)
    for template in config.language.templates:
        if "{}" not in template:
            raise UserError(f"language.templates: {template!r} has no {{}} for the name of the class")


def run_language(config: Any, folder: Path, machine: Machine) -> dict[str, Any]:
    """Train the towers and write language.json and language.safetensors; returns the manifest's entry."""
    c: LanguageConfig = config.language
    start = load_start(config, "language")
    check_clips(config.data, start.encoder)
    parts = build_parts(
        config.data,
        config.seed,
        folder,
        start.scale,
        need="text",
        generated=(c.clips, c.held_out),
        skip=c.skip_uncaptioned,
    )
    try:
        return _run(config, c, start, parts, folder, machine)
    finally:
        parts.close()


def _run(config: Any, c: LanguageConfig, start: Start, parts: Parts, folder: Path, machine: Machine) -> dict[str, Any]:
    note("language", start, parts.about)
    device = machine.device
    text_encoder = build_text_encoder(c.text_encoder).to(device)
    train: Any = parts.train
    held: Any = parts.held
    cached = None
    if c.unfreeze == "none":
        cached = encode_source(start.encoder, parts.train, device, "language", c.cache_gib)
        held = encode_source(start.encoder, parts.held, device, "language, held out", float("inf"))
        train = cached or train
    reader = TokenReader(None if cached is not None else start.encoder, c.unfreeze)
    towers = TwoTowers(start.encoder.dim, text_encoder.dim, c.dim, temperature=c.temperature)
    phase = LanguagePhase(reader, towers, Sentences(text_encoder), c.energy_weight)
    phase.held, phase.classes, phase.templates = held, parts.classes, c.templates
    assert parts.captions is not None
    phase.captions = parts.captions[0]
    depends = {"data": parts.about, "encoder": start.sha256, "language": c.model_dump(mode="json")}
    prefetch = None if cached is not None else parts.train.prefetch
    first, last = fit_phase("language", phase.to(device), train, c, config.seed, folder, machine, depends, prefetch)
    failed = all_failed(parts.train, parts.held)
    among = last.get("retrieved_among", 0)
    say(
        f"language: R@1 {last.get('video_to_text_r1', float('nan')):.3f} video to text, "
        f"{last.get('text_to_video_r1', float('nan')):.3f} text to video among {among} held-out captions"
    )
    names = {"video_to_text_r1": "R@1 video to text", "text_to_video_r1": "R@1 text to video", "zero_shot": "zero-shot"}

    def written() -> dict[str, Any]:
        files = save_language(folder, phase, c, start)
        pictures = curves(folder, names, f"held out, {among} captions")
        return entry(folder, start, files, parts.about, first, last) | {"pictures": pictures}

    return once(written) | {
        "failed": failed,
        "chance": {"r1": 1 / max(among, 1), "zero_shot": 1 / max(len(parts.classes), 1)},
    }


def save_language(folder: Path, phase: LanguagePhase, config: LanguageConfig, start: Start) -> list[Path]:
    """Towers (and a trained text encoder) as language.safetensors and language.json; an encoder that learned too."""
    state = {f"towers.{k}": v for k, v in phase.towers.state_dict().items()}
    if phase.text.trained is not None:
        state |= {f"text.{k}": v for k, v in phase.text.trained.state_dict().items()}
    file = folder / "language.safetensors"
    save_tensors(file, state)
    about = {"version": 1, "text_encoder": config.text_encoder, "dim": config.dim, "video_dim": start.encoder.dim}
    write_sealed(folder / "language.json", about | link(folder, start) | {"sha256": sha256_file(file)})
    return [file, *save_learned(folder, start, phase.reader.encoder, config.unfreeze)]


class About(TypedDict):
    text_encoder: str
    dim: int
    video_dim: int
    sha256: str


def load_language(folder: str | Path) -> tuple[TwoTowers, TextEncoder]:
    """What `save_language` wrote, in eval mode: the towers, and the text encoder that feeds them."""
    folder = Path(folder)
    about = read_json(folder / "language.json", "language model", About)
    file = folder / "language.safetensors"
    state = load_tensors(file, "language model")
    if sha256_file(file) != about["sha256"]:
        raise UserError(f"{file} is damaged: its sha256 is not the recorded one")
    text = build_text_encoder(about["text_encoder"])
    held = {k[7:]: v for k, v in state.items() if k.startswith("towers.")}
    towers = load_built(lambda: TwoTowers(about["video_dim"], text.dim, about["dim"]), held, file)
    if text.trained:
        load_strict(text, {k[5:]: v for k, v in state.items() if k.startswith("text.")}, file)
    return towers.eval(), text.eval()
