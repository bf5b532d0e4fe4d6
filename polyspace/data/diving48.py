"""Diving48 V2 (Li et al. 2018): `rgb/<vid_name>.mp4`, `Diving48_V2_{train,test}.json`, `Diving48_vocab.json`.

15 027 / 1 970 clips, 48 classes of which number 30 never occurs. `rgb` files are already cut to the dive, so the
lists' start and end frames restate the file's extent and are not applied again.
"""

from pathlib import Path
from typing import Any

from polyspace.data.records import ClipRecord, VideoDataset, check_root, inside, partition
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError


def build(root: Path, split: str, *, annotations: Path | None = None) -> VideoDataset:
    root = check_root(root, "diving48")
    folder = Path(annotations) if annotations else root
    vocabulary = read_json(folder / "Diving48_vocab.json", "diving48 vocabulary", list[list[str]])
    classes = ["+".join(parts) for parts in vocabulary]
    listed = "train" if split == "train" else "test"
    file = folder / f"Diving48_V2_{listed}.json"
    notes = [] if split != "validation" else ["diving48 has no validation list: `validation` is its official test list"]
    candidates = [
        _record(root, file, item, len(classes))
        for item in read_json(file, f"diving48 {split} list", list[dict[str, Any]])
    ]
    return partition("diving48", split, classes, candidates, notes)


def _record(root: Path, file: Path, item: dict[str, Any], classes: int) -> ClipRecord:
    try:
        name, label = str(item["vid_name"]), int(item["label"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: an item lacks a vid_name or a whole-number label: {item!r:.80}") from error
    if not 0 <= label < classes:
        raise UserError(f"{file}: {name:.80} has label {label}, but the vocabulary has {classes} classes")
    return ClipRecord(name, inside(root, f"rgb/{name}.mp4"), label, name.rpartition("_")[0] or name)
