"""People's own videos: a folder per class, or a CSV of path, label, text, split.

`root/<split>/<class>/x.mp4` where root has split folders; else `root/<class>/x.mp4`, all of it `train`. Files beside
the class folders, or in a root without any, carry no label. A `--list` CSV has a header with `path` and, where
wanted, `label`, `text` and `split`. A split that isn't there is an error: none is invented.
"""

import csv
import io
from pathlib import Path

from polyspace.data.records import SPLITS, ClipRecord, VideoDataset, check_root, inside, partition
from polyspace.utils.errors import UserError
from polyspace.utils.reading import read_text

# Files that accompany videos. Anything else is tried, so that what can't be read is listed rather than passed over.
_COMPANIONS = (
    ".txt",
    ".csv",
    ".json",
    ".jsonl",
    ".md",
    ".yaml",
    ".yml",
    ".xml",
    ".srt",
    ".vtt",
    ".py",
    ".npz",
    ".html",
)


def build(root: Path, split: str, *, list_file: Path | None = None) -> VideoDataset:
    root = check_root(root, "videofolder")
    if list_file is not None:
        return _from_list(root, split, Path(list_file))
    split_folders = [s for s in SPLITS if (root / s).is_dir()]
    notes = []
    base = root
    if split_folders:
        source = split
        if split == "validation" and "validation" not in split_folders:
            source, notes = "test", ["no validation folder: `validation` is the test folder"]
        if source not in split_folders:
            raise UserError(f"videofolder: {root} has {', '.join(split_folders)}/ but no {split}/")
        base = root / source
        classes = sorted({p.name for s in split_folders for p in _folders(root / s)})
    elif split != "train":
        raise UserError(f"videofolder: {root} has no {split}/ folder; all of it is `train` (or use --list)")
    else:
        classes = [p.name for p in _folders(root)]
    ids = {name: label for label, name in enumerate(classes)}
    found = []
    for path in _files(base):
        parts = path.relative_to(base).parts
        clip = path.relative_to(root).as_posix()
        found.append(ClipRecord(clip, path, ids[parts[0]] if len(parts) > 1 else None, clip))
    return partition("videofolder", split, classes, found, notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and _files(p))


def _files(folder: Path) -> list[Path]:
    def visible(path: Path) -> bool:
        return not any(part.startswith(".") for part in path.relative_to(folder).parts)

    return sorted(p for p in folder.rglob("*") if p.is_file() and visible(p) and p.suffix.lower() not in _COMPANIONS)


def _from_list(root: Path, split: str, list_file: Path) -> VideoDataset:
    rows = _rows(list_file)
    if "split" not in rows[0] and split != "train":
        raise UserError(f"--list {list_file} has no `split` column, so it has no {split} split")
    classes = sorted({row["label"] for row in rows if row.get("label")})
    ids = {name: label for label, name in enumerate(classes)}
    out = []
    for row in rows:
        if row.get("split", split) == split:
            clip = row["path"]
            label = ids[row["label"]] if row.get("label") else None
            out.append(ClipRecord(clip, inside(root, clip), label, clip, row.get("text") or None))
    return partition("videofolder", split, classes, out, [])


def _rows(list_file: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(list_file, "--list", "utf-8-sig"), newline=""), restkey=""))
    except csv.Error as error:
        raise UserError(f"--list {list_file} is not a UTF-8 CSV file ({error})") from error
    if not rows or "path" not in rows[0]:
        raise UserError(f"--list {list_file} needs a header with a `path` column and at least one row")
    if any(not row["path"] for row in rows):
        raise UserError(f"--list {list_file} has a row without a path")
    return rows
