"""A feature store as something to look at: its clips with thumbnails, and where they lie in every space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polyspace.data import build_dataset
from polyspace.data.feature_store import FeatureStore
from polyspace.data.video import VideoError, VideoReader
from polyspace.models.spaces.converters import ConverterBank
from polyspace.report.library import FRAMES, NEAREST, Clip, Library, SpaceView, square, thumbnails
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress
from polyspace.utils.metrics import group_interval
from polyspace.utils.projection import MAPS
from polyspace.utils.reading import check_form, reads


def video_paths(store: FeatureStore, roots: Sequence[Path] = ()) -> dict[str, Path]:
    """Where the store's clips lie, in `roots` or where its run file says, if they are still there."""
    about = store.path.with_suffix(".run.json")
    if not about.is_file():
        return {}
    config = read_json(about, "run", dict[str, Any]).get("config") or {}
    settings = store.manifest["settings"]
    check_form(config, dict[str, Any], about, "run")
    options = {key: config.get(key) for key in ("fold", "annotations", "list_file")}
    best: dict[str, Path] = {}
    wanted = set(store.ids)
    for root in [*roots, config.get("root") or ""]:
        try:
            with reads(store.path, "feature store"):
                data = build_dataset(settings["dataset"], Path(root), settings["split"], **options)
        except (UserError, OSError):
            continue
        found = {r.id: r.path for r in data.records if r.id in wanted and r.path.is_file()}
        best = max(best, found, key=len)
    return best


def few_frames(path: Path, count: int = FRAMES) -> NDArray[np.uint8] | None:
    """So many frames spread over a clip, as small as thumbnails are; None where it can't be read."""
    try:
        with VideoReader(path) as video:
            _, frames = video.sample(lambda n: sorted({round(i * (n - 1) / max(count - 1, 1)) for i in range(count)}))
        return np.stack([square(frame) for frame in frames.numpy()])
    except (VideoError, IndexError):
        return None


def make_library(
    store: FeatureStore, bank: ConverterBank | None, paths: Mapping[str, Path], how: str = "pca", most: int = 300
) -> Library:
    """Up to `most` clips, spread over the store. Translated spaces stand beside the true ones where there are
    converters."""
    count = min(most, len(store))
    rows = torch.tensor([i * len(store) // count for i in range(count)])
    clips = [store.manifest["clips"][i] for i in rows.tolist()]
    labels = [clip["label"] for clip in clips]
    groups = [clip["group"] for clip in clips]
    spaces = {store.student: store.features(store.student)[rows]}
    for name in store.spaces:
        if name == store.student:
            continue
        if bank is not None and name in bank.dims:
            with torch.inference_mode():
                spaces[f"{name}, translated"] = bank[name](spaces[store.student])
        spaces[name] = store.features(name)[rows]
    views = [space_view(name, x, labels, groups, how) for name, x in spaces.items()]
    known = [k for k in labels if k is not None]
    sheet = None
    if any(clip["id"] in paths for clip in clips):
        videos = []
        with Progress(count, "thumbnails", "clip") as bar:
            for clip in clips:
                videos.append(few_frames(paths[clip["id"]]) if clip["id"] in paths else None)
                bar.step()
        sheet = thumbnails(videos)
    title = f"{store.manifest['dataset']} {store.manifest['split']}"
    return Library(
        title=f"generated clips, {title} layout" if store.manifest.get("generated") else title,
        clips=[Clip(c["id"], c["label"], c["group"], c.get("text") or "") for c in clips],
        classes=store.classes,
        spaces=views,
        sheet=sheet,
        chance=_chance(labels, groups) if len(known) == count else None,
        stand_ins=store.stand_ins,
    )


def space_view(name: str, x: Tensor, labels: Sequence[int | None], groups: Sequence[str], how: str) -> SpaceView:
    points, axes = MAPS[how](x.float())
    z = F.normalize(x.float(), dim=1)
    likeness = z @ z.T
    likeness[_same_group(groups)] = -torch.inf
    score, nearest = likeness.topk(min(NEAREST, len(x)), dim=1)
    nearest = torch.where(score.isfinite(), nearest, -1)
    same = None
    there = (nearest >= 0).any(1)
    if all(label is not None for label in labels) and bool(there.any()):
        y = torch.tensor(labels)
        hit = (y[nearest] == y[:, None]) & (nearest >= 0)
        share = hit.float().sum(1) / (nearest >= 0).sum(1).clamp_min(1)
        same = (share[there].mean().item(), *group_interval(share[there], _groups(groups)[there]))
    return SpaceView(name, points.numpy(), axes, nearest.numpy(), same)


def _groups(groups: Sequence[str]) -> Tensor:
    known: dict[str, int] = {}
    return torch.tensor([known.setdefault(group, len(known)) for group in groups])


def _same_group(groups: Sequence[str]) -> Tensor:
    number = _groups(groups)
    return number[:, None] == number


def _chance(labels: Sequence[int | None], groups: Sequence[str]) -> float:
    """How often another clip, of another source, is of the same class."""
    y = torch.tensor([-1 if label is None else label for label in labels])
    other = ~_same_group(groups)
    mine = ((y[:, None] == y) & other).sum(1) / other.sum(1).clamp_min(1)
    return mine[other.any(1)].mean().item() if bool(other.any()) else 0.0


def captions(store: FeatureStore, paths: Mapping[str, Path]) -> dict[str, str]:
    """Text of each clip, by its id and by its path."""
    told: dict[str, Any] = {clip["id"]: clip.get("text") or "" for clip in store.manifest["clips"]}
    return told | {str(path): told[key] for key, path in paths.items() if key in told}
