"""Clips for the phases by configuration: generated ones or files, for training and held out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from polyspace.data import build_dataset
from polyspace.data.captions import attributes, caption_clips, motion_words
from polyspace.data.clip_source import FileClips, MemoryClips
from polyspace.data.moving import moving_clips
from polyspace.data.records import ClipRecord
from polyspace.data.sampling import Sampling
from polyspace.models.hnet.encoder import grid_of
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.vjepa.pretrain_config import DataConfig
from polyspace.utils.checkpoint_io import sha256_json
from polyspace.utils.errors import UserError
from polyspace.utils.holdout import hold_out
from polyspace.utils.plan import Plan

GENERATED = {"mean": [0.45] * 3, "std": [0.25] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HELD_SEED = 77_777  # held-out generated clips come from other seeds than any run's training clips
Source = MemoryClips | FileClips


@dataclass(frozen=True)
class Parts:
    """Clips to train on and clips held out, names of the classes, and what the manifest says about them.

    `captions`: of the training and the held-out clips, where they have any."""

    train: Source
    held: Source
    classes: list[str]
    about: dict[str, Any]
    captions: tuple[list[str], list[str]] | None = None

    def close(self) -> None:
        self.train.close()
        self.held.close()


def input_of(config: DataConfig) -> dict[str, Any]:
    """What an encoder that is pretrained on such clips takes in: frames, size, and how pixels are normalised."""
    scale = GENERATED if config.dataset == "generated" else IMAGENET
    more = {} if config.dataset == "generated" else {"sampling": config.sampling}
    return {"frames": config.frames, "size": config.size} | scale | more


def check_clips(config: DataConfig, encoder: HNetViT | TubeletViT, future_share: float | None = None) -> None:
    """UserError where the encoder can't cut such clips into cells, or masks could hide nothing of them."""
    try:
        steps, rows, columns = grid_of(
            torch.empty(1, config.frames, config.size, config.size, 3, device="meta"), encoder.unit, encoder.unit_frames
        )
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    if future_share is None:
        return
    if steps < 2 and future_share > 0:
        raise UserError(f"data.frames {config.frames}: one step of cells has no future to hide")
    if rows * columns < 2 and future_share < 1:
        raise UserError(f"data.size {config.size}: one column of cells leaves nothing to see when it is hidden")


def generated_clips(
    config: DataConfig,
    count: int,
    seed: int,
    scale: dict[str, Any],
    cells: tuple[int, int] | None = None,
    kind: Literal["class", "attributes"] = "class",
) -> MemoryClips:
    """Labelled and captioned clips; with `cells` (pixels and frames of a base cell) also maps of what is an object."""
    try:
        clips = moving_clips(count, seed, frames=config.frames, size=config.size, keep_mask=cells is not None)
    except ValueError as error:
        raise UserError(f"data.frames {config.frames}: {error}") from error
    maps = None
    if cells is not None and clips.mask is not None:
        unit, unit_frames = cells
        shown = (clips.mask > 0).float()
        n, t, s, _ = shown.shape
        maps = shown.view(n, t // unit_frames, unit_frames, s // unit, unit, s // unit, unit).mean((2, 4, 6))
    label = clips.label if kind == "class" else attributes(clips)
    return MemoryClips(clips.video, label, caption_clips(clips), maps, (scale["mean"][0], scale["std"][0]))


def build_source(
    config: DataConfig, seed: int, folder: Path, scale: dict[str, Any] | None = None
) -> tuple[Source, dict[str, Any]]:
    """Training clips and what the manifest says about them; what can't be read is noted in `folder`."""
    scale = scale or input_of(config)
    if config.dataset == "generated":
        clips = generated_clips(config, config.clips, seed, scale)
        return clips, {"dataset": "generated", "clips": len(clips)}
    found = _dataset(config, config.split)
    source = _files(config, found.records, folder / "failed.json", seed if config.augment else None, scale)
    about: dict[str, Any] = {"dataset": config.dataset, "split": config.split, "clips": len(found.records)}
    ids = sha256_json([record.id for record in found.records])
    return source, about | {"missing": len(found.missing), "clip_ids_sha256": ids}


def build_parts(
    config: DataConfig,
    seed: int,
    folder: Path,
    scale: dict[str, Any],
    *,
    need: Literal["label", "text"],
    generated: tuple[int, int],
    cells: tuple[int, int] | None = None,
    kind: Literal["class", "attributes"] = "class",
    skip: bool = False,
) -> Parts:
    """Training and held-out clips for a phase that needs labels or captions.

    Generated: `generated` so many of each, drawn from other seeds than pretraining's. Files: the data set's validation
    list, or where it has none a fifth of the training clips, by source video. Clips always show their middle frames.
    A clip without a label is left out and counted; one without a caption is an error, unless `skip`.
    """
    if config.dataset == "generated":
        sizes = zip(generated, (seed + 1_000, HELD_SEED + seed), strict=True)
        train, held = (generated_clips(config, n, s, scale, cells, kind) for n, s in sizes)
        assert train.text is not None and held.text is not None
        names = [motion_words(k) for k in range(6)]
        about = {"dataset": "generated", "clips": len(train), "held_out": len(held)}
        return Parts(train, held, names, about, (list(train.text), list(held.text)))
    found = _dataset(config, config.split)
    records = _usable(config, found.records, need, skip)
    held_records, where = _held_out(config, records, need, skip)
    unusable = len(found.records) - len(records)
    kept = {r.id for r in held_records}
    records = [r for r in records if r.id not in kept]
    about = {"dataset": config.dataset, "split": config.split, "clips": len(records), "held_out": len(held_records)}
    about |= {"held_out_is": where, "missing": len(found.missing), "left_out": unusable}
    about["clip_ids_sha256"] = sha256_json([r.id for r in [*records, *held_records]])
    sources = [
        _files(config, part, folder / f"failed_{name}.json", None, scale)
        for name, part in (("train", records), ("held_out", held_records))
    ]
    captions = ([r.text or "" for r in records], [r.text or "" for r in held_records])
    return Parts(sources[0], sources[1], found.classes, about, captions if need == "text" else None)


def _usable(config: DataConfig, records: list[ClipRecord], need: str, skip: bool) -> list[ClipRecord]:
    """Records that have what is needed; UserError where none has, or where captions are missing against the rules."""
    if need == "label":
        kept = [r for r in records if r.label is not None]
    else:
        kept = [r for r in records if any(c.isalnum() for c in r.text or "")]
        gone = {r.id for r in records} - {r.id for r in kept}
        if kept and gone and not skip:
            raise UserError(
                f"language: {len(gone)} of {len(records)} clips have no caption (the first: {min(gone)}); write them, "
                f"or leave these clips out with --set language.skip_uncaptioned=true"
            )
    if not kept:
        raise UserError(
            f"data: no clip of {config.dataset} {config.split} has a {'label' if need == 'label' else 'caption'}"
        )
    return kept


def _held_out(config: DataConfig, records: list[ClipRecord], need: str, skip: bool) -> tuple[list[ClipRecord], str]:
    try:
        found = _dataset(config, "validation").records if config.split == "train" else []
    except UserError:
        found = []
    usable = _usable(config, found, need, skip) if found else []
    own = {r.id for r in records}
    if usable and not any(r.id in own for r in usable):
        return usable, "validation split"
    held = hold_out([r.group for r in records], [r.label for r in records])
    return [r for r, out in zip(records, held.tolist(), strict=True) if out], "a fifth of the training clips"


def _dataset(config: DataConfig, split: str) -> Any:
    if config.root is None:
        raise UserError(f"data.root is required for data.dataset {config.dataset}")
    return build_dataset(config.dataset, config.root, split, list_file=config.list)


def _files(
    config: DataConfig, records: list[ClipRecord], notes: Path, drawn: int | None, scale: dict[str, Any]
) -> FileClips:
    size = config.size
    mean, std = tuple(scale["mean"]), tuple(scale["std"])
    plan = Plan(frames=config.frames, resize=size, crop=(size, size), mean=mean, std=std, source="pretrain")
    return FileClips(records, plan, Sampling.parse(config.sampling), config.workers, config.max_failed, notes, drawn)
