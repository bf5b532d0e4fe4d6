"""python -m polyspace.data.featurize: videos to a feature store of a student and its teachers.

Killed at any moment and run again, it continues and ends byte-equal to an uninterrupted run.
"""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyspace.config import Config, parse, run_command
from polyspace.data import VideoDataset, build_dataset
from polyspace.data.extract import BatchDataset, Decoded, Forward, Views, compute, run_batches
from polyspace.data.feature_store import FeatureStore, manifest_name
from polyspace.data.sampling import Sampling
from polyspace.data.store_writer import StoreWriter
from polyspace.models.backbones import BackboneCard, describe_all
from polyspace.utils import distrib
from polyspace.utils.checkpoint_io import sha256_json, try_writing, write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress, say, warn
from polyspace.utils.misc import get_device
from polyspace.utils.precision import note_precision
from polyspace.utils.run_info import run_info


class SourceConfig(Config):
    """Which clips and which backbones: shared by every command that may have to featurize."""

    dataset: str = Field(description="hmdb51, diving48, ssv2 or videofolder")
    root: Path = Field(description="the data set's folder")
    split: str = Field("train", description="train, validation or test")
    fold: int | None = Field(None, description="hmdb51: official fold 1, 2 or 3; none: 1")
    annotations: Path | None = Field(None, description="folder of the annotation files, if not under --root")
    list_file: Path | None = Field(None, alias="list", description="videofolder: CSV with path, label, text, split")
    student: str = Field("vjepa2", description="backbone that serves the other spaces")
    teachers: list[str] = Field(["videomae", "timesformer", "vivit"], description="backbones whose spaces are served")
    checkpoint: list[str] = Field([], description="NAME=PATH_OR_ID[@REVISION] each")
    frames: int = Field(16, ge=1, description="the student's frames; each teacher has its own plan")
    num_chunks: int | None = Field(None, ge=1, description="hnet_vjepa: tokens a clip; none: its content decides")
    sampling: str = Field("segments", description="segments, stride:N, fps:N or index:I,J,…")
    views: int = Field(1, ge=1, description="windows in time, averaged")
    crops: int = Field(1, ge=1, description="crops in space, averaged")
    strict: bool = Field(False, description="missing weights are an error instead of a stand-in")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forwards; bf16 pays where the device has it")
    workers: int = Field(2, ge=0, description="processes; on a CPU each decodes and computes with one thread")
    max_failed: float = Field(0.05, ge=0, le=1, description="share of unreadable clips that makes the run fail")


class FeaturizeConfig(SourceConfig):
    out: Path = Field(Path("features"), description="folder of the store")
    batch: int = Field(2, ge=1, description="clips a forward")
    tokens: bool = Field(False, description="also keep every token, not only one vector a clip")
    min_frames: int = Field(2, ge=1, description="clips with fewer decodable frames are listed as failed")
    overwrite: bool = Field(False, description="replace a store that was made with other settings")


def store_settings(
    config: SourceConfig, data: VideoDataset, cards: dict[str, BackboneCard], tokens: bool = False, min_frames: int = 2
) -> dict[str, Any]:
    """Everything that a store's features depend on; its digest is the store's fingerprint."""
    clips = [[r.id, r.label, r.group, r.path.stat().st_size] for r in data.records]
    return {
        "dataset": data.name,
        "split": data.split,
        "fold": config.fold or 1 if data.name == "hmdb51" else None,
        "clips": sha256_json(clips),
        "classes": sha256_json(data.classes),
        "missing": len(data.missing),
        "student": config.student,
        "spaces": {name: card.identity() for name, card in cards.items()},
        "sampling": str(Sampling.parse(config.sampling)),
        "views": config.views,
        "crops": config.crops,
        "tokens": tokens,
        "min_frames": min_frames,
    } | ({} if config.precision == "fp32" else {"precision": config.precision})


def open_source(config: SourceConfig) -> tuple[VideoDataset, dict[str, BackboneCard]]:
    """Data set and cards; everything that can be wrong with the flags is found here, before any work."""
    sampling = Sampling.parse(config.sampling)
    get_device(config.device)
    cards = describe_all(
        config.student, config.teachers, config.frames, config.checkpoint, config.strict, config.num_chunks
    )
    for name, card in cards.items():
        if sampling.kind == "index" and len(sampling.indices) != card.plan.frames:
            got, takes = len(sampling.indices), card.plan.frames
            raise UserError(f"--sampling {config.sampling}: {got} frames are named, but {name} takes {takes}")
    options = {"fold": config.fold, "annotations": config.annotations, "list_file": config.list_file}
    data = build_dataset(config.dataset, config.root, config.split, **options)
    for note in data.notes:
        say(f"note: {note}")
    if data.missing:
        warn(f"{len(data.missing)} of {len(data.missing) + len(data.records)} listed clips are not under {config.root}")
    return data, cards


def featurize(
    config: FeaturizeConfig, source: tuple[VideoDataset, dict[str, BackboneCard]] | None = None
) -> FeatureStore:
    """Make (or find finished) the store of these settings; see the module's first lines."""
    data, cards = source or open_source(config)
    settings = store_settings(config, data, cards, config.tokens, config.min_frames)
    path = config.out / manifest_name(data.name, data.split)
    try_writing(config.out)
    writer = StoreWriter(path, settings, config.batch)
    finished = _finished(path, writer, config)
    if finished is not None:
        say(f"{path} is complete already ({len(finished)} clips)")
        return finished
    note_precision(config.precision, get_device(config.device))
    if distrib.is_main():
        writer.open()
    try:
        distrib.barrier()
        device = get_device(config.device)
        forwards = {name: forward_of(card, device, config.tokens, config.precision) for name, card in cards.items()}
        report = _run(config, data, cards, forwards, writer, device)
        distrib.barrier()
        if distrib.is_main():
            _finish(config, data, cards, writer, report)
        distrib.barrier()
    finally:
        writer.close()
    return FeatureStore(path)


def _finished(path: Path, writer: StoreWriter, config: FeaturizeConfig) -> FeatureStore | None:
    if not path.is_file() or config.overwrite:
        return None
    store = FeatureStore(path)
    if store.fingerprint == writer.fingerprint and store.manifest["batch"] == config.batch:
        return store if store.is_sound() else None
    old, new = (
        store.manifest["settings"] | {"batch": store.manifest["batch"]},
        writer.settings | {"batch": config.batch},
    )
    differing = sorted(k for k in old | new if old.get(k) != new.get(k))
    raise UserError(f"{path} was made with another {', '.join(differing)}; give --overwrite or another --out")


def forward_of(card: BackboneCard, device: torch.device, tokens: bool, precision: str = "fp32") -> Forward:
    """A backbone as the workers call it: the clip feature, and with `tokens` all tokens, in fp32 on the CPU.
    `precision` bf16 runs its products under autocast."""
    backbone = card.load().to(device)

    def run(video: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = backbone(video.to(device, non_blocking=True))
        out = {"": features.pooled.float().cpu()}
        return out | ({".tokens": features.tokens.float().cpu()} if tokens else {})

    return run


def _run(
    config: FeaturizeConfig,
    data: VideoDataset,
    cards: dict[str, BackboneCard],
    forwards: dict[str, Forward],
    writer: StoreWriter,
    device: torch.device,
) -> dict[str, Any]:
    """Compute this rank's missing batches; returns counts and seconds."""
    views = Views(Sampling.parse(config.sampling), config.views, config.crops, config.min_frames)
    plans = {name: card.plan for name, card in cards.items()}
    in_workers = device.type == "cpu"
    paths = [record.path for record in data.records]
    need = plans[config.student].frames
    dataset = BatchDataset(paths, plans, views, need, writer, forwards if in_workers else None)
    mine = range(distrib.rank(), len(dataset), distrib.world_size())
    todo = [index for index in mine if not writer.done(index)]
    seconds: dict[str, float] = {}
    frames, failed = 0, 0
    start = time.perf_counter()
    skipped = min((len(mine) - len(todo)) * config.batch, len(paths))
    if skipped:
        say(f"continuing: {skipped} of {len(paths)} clips are done")
    with Progress(len(paths), f"featurize {data.name} {data.split}", "clip", initial=skipped) as bar:
        for batch in run_batches(dataset, todo, config.workers):
            if not in_workers:
                compute(batch, forwards, views, writer)
            frames += batch.frames_decoded
            failed += sum(r.reason is not None for r in batch.results)
            _add(seconds, batch)
            bar.step(len(batch.results), failed=failed)
    wall = time.perf_counter() - start
    return {"batches": len(todo), "frames_decoded": frames, "wall_seconds": wall, "cpu_seconds": seconds}


def _add(seconds: dict[str, float], batch: Decoded) -> None:
    for name, value in batch.seconds.items():
        seconds[name] = seconds.get(name, 0.0) + value


def _finish(
    config: FeaturizeConfig,
    data: VideoDataset,
    cards: dict[str, BackboneCard],
    writer: StoreWriter,
    report: dict[str, Any],
) -> None:
    clips = [
        {"id": r.id, "label": r.label, "group": r.group} | ({"text": r.text} if r.text else {}) for r in data.records
    ]
    spaces = {name: card.about() for name, card in cards.items()}
    head: dict[str, Any] = {"dataset": data.name, "split": data.split, "student": config.student, "spaces": spaces}
    head |= {"classes": data.classes, "missing": data.missing, "generated": synthetic_root(config.root)}
    tokens = sum(c.dim * c.grid[0] * c.grid[1] * c.grid[2] for c in cards.values()) if config.tokens else 0
    row_bytes = 4 * (sum(card.dim for card in cards.values()) + tokens)
    store = writer.finish(clips, head, row_bytes)
    run = run_info("featurize", config) | {"counts": {"clips": len(store)}, "report": report}
    write_sealed(store.path.with_name(f"{store.path.stem}.run.json"), run)


def synthetic_root(root: Path) -> bool:
    """Whether the clips come from our own generator: reports must say so, whatever layout they lie in."""
    return (root / "synthetic").is_dir()


def summarise(store: FeatureStore, max_failed: float) -> int:
    """Say what the store holds and what it lacks; 1 if too many clips failed."""
    failed, missing = store.manifest["failed"], store.manifest["missing"]
    say(f"{len(store)} clips, {len(failed)} failed, {len(missing)} missing -> {store.path}")
    for name, space in store.spaces.items():
        stand_in = "  (identity stand-in)" if space["backend"] == "identity" else ""
        say(f"  {name}: {space['dim']} dims, {space['pooling']} pooling, {space['checkpoint']}{stand_in}")
    return failure_code(store, max_failed)


def failure_code(store: FeatureStore, max_failed: float) -> int:
    """List clips that could not be read; 1 if they are more than `max_failed` of those present."""
    failed = store.manifest["failed"]
    for clip in failed[:20]:
        say(f"  failed: {clip['id']}: {clip['reason']}")
    if len(failed) > 20:
        say(f"  … and {len(failed) - 20} more, all in the manifest")
    share = len(failed) / max(1, len(failed) + len(store))
    if share > max_failed:
        warn(f"{len(failed)} clips ({share:.1%}) could not be read, more than --max_failed {max_failed:.0%}")
        return 1
    return 0


def main(argv: Sequence[str]) -> int:
    config = parse(
        FeaturizeConfig,
        argv,
        prog="polyspace featurize",
        about="Decode every clip once and store the features of a student and its teachers.",
        example="python -m polyspace.data.featurize --dataset hmdb51 --root ./datasets/hmdb51 --split train "
        "--out ./features --student vjepa2 --teachers videomae timesformer vivit --batch 2 --workers 2 --frames 16",
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    distrib.initialize()
    try:
        return summarise(featurize(config), config.max_failed)
    finally:
        distrib.shutdown()
        signal.signal(signal.SIGTERM, before)  # others may call this function in their own process


if __name__ == "__main__":
    raise SystemExit(run_command(main))
