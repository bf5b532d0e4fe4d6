"""`polyspace doctor --dataset …`: near-duplicates between splits, and what else is wrong with a data set's clips."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from polyspace.data import ClipRecord, VideoDataset, build_dataset
from polyspace.data.clip_source import ready_worker
from polyspace.data.duplicates import FRAMES, SIDE, THRESHOLD, find_pairs, sketch
from polyspace.data.records import SPLITS
from polyspace.data.video import VideoError
from polyspace.doctor import DoctorConfig
from polyspace.utils.checkpoint_io import sha256_file, try_writing, write_json
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress, say, table, warn
from polyspace.utils.worker import map_in_processes

SHOWN = 20  # pairs in the log; all of them stand in --out


@dataclass(frozen=True)
class Listed:
    """A clip where it stands."""

    split: str
    record: ClipRecord

    @property
    def about(self) -> dict[str, Any]:
        return {"split": self.split, "id": self.record.id, "label": self.record.label}


def open_splits(asked: DoctorConfig) -> dict[str, VideoDataset]:
    """The data set's splits by name. One that lists the same clips as an earlier one is left out with a note; so is one
    that isn't there, unless it was asked for."""
    assert asked.dataset is not None
    if asked.root is None:
        raise UserError(f"--dataset {asked.dataset} needs --root, the data set's folder")
    options = {"fold": asked.fold, "annotations": asked.annotations, "list_file": asked.list_file}
    found: dict[str, VideoDataset] = {}
    refused: list[UserError] = []
    for split in asked.splits or SPLITS:
        try:
            data = build_dataset(asked.dataset, asked.root, split, **options)
        except UserError as error:
            if asked.splits:
                raise
            refused.append(error)
            say(f"note: no {split} split: {error}")
            continue
        ids = {record.id for record in data.records}
        same = [name for name, other in found.items() if {record.id for record in other.records} == ids]
        if same:
            say(f"note: {split} lists the same clips as {same[0]} and is left out")
            continue
        if data.missing:
            warn(f"{split}: {len(data.missing)} of {len(data.missing) + len(ids)} listed clips are not under --root")
        found[split] = data
    if not found:
        raise refused[0]
    return found


def _try_sketch(path: Path) -> np.ndarray | str:
    try:
        return sketch(path)
    except VideoError as error:
        return error.reason


def _sketches(paths: Sequence[Path], workers: int) -> Iterator[np.ndarray | str]:
    if not workers:
        yield from map(_try_sketch, paths)
        return
    died = "a process that decodes died; run again with fewer --workers"
    yield from map_in_processes(_try_sketch, paths, workers, died, ready_worker, get_context("spawn"))


def read_all(clips: Sequence[Listed], workers: int) -> tuple[np.ndarray, list[int], list[dict[str, Any]]]:
    """The sketches of the clips that can be read, their rows among `clips`, and those that can't, with the reason."""
    sketches = np.empty((len(clips), FRAMES, SIDE, SIDE), np.uint8)
    rows: list[int] = []
    failed: list[dict[str, Any]] = []
    with Progress(len(clips), "doctor: read clips", "clip") as bar:
        for row, found in enumerate(_sketches([clip.record.path for clip in clips], workers)):
            if isinstance(found, str):
                failed.append(clips[row].about | {"reason": found})
            else:
                sketches[len(rows)] = found
                rows.append(row)
            bar.step(failed=len(failed))
    return sketches[: len(rows)], rows, failed


def identical_files(clips: Sequence[Listed]) -> list[list[Listed]]:
    """Clips whose files hold the same bytes; only files of one size are read for it."""
    sizes: dict[int, list[Listed]] = defaultdict(list)
    for clip in clips:
        sizes[clip.record.path.stat().st_size].append(clip)
    digests: dict[str, list[Listed]] = defaultdict(list)
    for alike in sizes.values():
        for clip in alike if len(alike) > 1 else []:
            digests[sha256_file(clip.record.path)].append(clip)
    return [same for same in digests.values() if len(same) > 1]


def examine(asked: DoctorConfig) -> dict[str, Any]:
    """Everything there is to say about the data set's clips, as it stands in --out."""
    data = open_splits(asked)
    clips = [Listed(split, record) for split, part in data.items() for record in part.records]
    sketches, rows, failed = read_all(clips, asked.workers)
    threshold = THRESHOLD if asked.threshold is None else asked.threshold
    pairs = []
    for pair in find_pairs(sketches, threshold):
        first, second = clips[rows[pair.first]], clips[rows[pair.second]]
        entry: dict[str, Any] = {"first": first.about, "second": second.about, "distance": pair.distance}
        pairs.append(entry | {"mirrored": pair.mirrored, "still": pair.still})
    groups: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        groups[clip.record.group].add(clip.split)
    return {
        "dataset": asked.dataset,
        "threshold": threshold,
        "clips": {split: len(part.records) for split, part in data.items()},
        "across_splits": [p for p in pairs if p["first"]["split"] != p["second"]["split"]],
        "within_a_split": [p for p in pairs if p["first"]["split"] == p["second"]["split"]],
        "label_conflicts": [p for p in pairs if _conflict(p["first"]["label"], p["second"]["label"])],
        "identical_files": [[clip.about for clip in same] for same in identical_files(clips)],
        "sources_in_two_splits": {g: sorted(s) for g, s in sorted(groups.items()) if len(s) > 1},
        "unreadable": failed,
        "classes_without_clips": {split: _empty_classes(part) for split, part in data.items()},
    }


def _conflict(first: int | None, second: int | None) -> bool:
    return first is not None and second is not None and first != second


def _empty_classes(part: VideoDataset) -> list[str]:
    """Classes without a clip; none where the split has no labels at all."""
    count = Counter(record.label for record in part.records if record.label is not None)
    return [name for label, name in enumerate(part.classes) if count and not count[label]]


def _say_all(found: dict[str, Any]) -> None:
    count = {key: len(found[key]) for key in ("across_splits", "within_a_split", "label_conflicts", "unreadable")}
    rows = [["clips", ", ".join(f"{split} {n}" for split, n in found["clips"].items())]]
    rows += [
        ["near-duplicate pairs across splits", str(count["across_splits"])],
        ["near-duplicate pairs within a split", str(count["within_a_split"])],
        ["of both, still scenes that can't be told apart", str(_still(found))],
        ["of both, with different labels", str(count["label_conflicts"])],
        ["sets of identical files", str(len(found["identical_files"]))],
        ["source videos in two splits", str(len(found["sources_in_two_splits"]))],
        ["unreadable clips", str(count["unreadable"])],
    ]
    for split, names in found["classes_without_clips"].items():
        rows.append([f"classes without a clip in {split}", f"{len(names)} {', '.join(names[:5])}".strip()])
    for line in table(rows, ["found", "number"]):
        say(line)
    nearest = sorted(found["across_splits"], key=lambda pair: pair["distance"])[:SHOWN]
    if nearest:
        say("\nnearest pairs across splits")
        shown = [
            [f"{p['distance']:.3f}", *(f"{p[k]['split']}: {p[k]['id']}" for k in ("first", "second")), _remark(p)]
            for p in nearest
        ]
        for line in table(shown, ["distance", "clip", "clip", "remark"]):
            say(line)
    for clip in found["unreadable"][:SHOWN]:
        say(f"unreadable: {clip['split']}: {clip['id']}: {clip['reason']}")


def _still(found: dict[str, Any]) -> int:
    return sum(pair["still"] for key in ("across_splits", "within_a_split") for pair in found[key])


def _remark(pair: dict[str, Any]) -> str:
    words = {"mirrored": pair["mirrored"], "still": pair["still"]}
    words["other label"] = _conflict(pair["first"]["label"], pair["second"]["label"])
    return ", ".join(word for word, holds in words.items() if holds)


def check_data(asked: DoctorConfig) -> int:
    """Say (and write to --out) what is found; 1 if a near-duplicate stands in two splits."""
    if asked.out is not None:
        try_writing(asked.out.parent)
    found = examine(asked)
    _say_all(found)
    if asked.out is not None:
        write_json(asked.out, found)
        say(f"-> {asked.out}")
    pairs = len(found["across_splits"])
    if not pairs:
        return 0
    where = f"{asked.out} lists them" if asked.out else "--out FILE.json lists them"
    warn(f"{pairs} near-duplicate {'pair stands' if pairs == 1 else 'pairs stand'} in two splits; {where}")
    return 1
