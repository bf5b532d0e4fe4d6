"""Something-Something v2 (Goyal et al. 2017): `20bn-something-something-v2/<id>.webm` and JSON lists.

174 classes; an item's class is its template with every `[` and `]` removed, looked up in the labels file.
Both packagings are read: `something-something-v2-X.json` and plain `X.json`, in root, `annotations/` or `labels/`.
168 913 / 24 777 / 27 157 clips; the test list has labels only where a test-answers file lies beside it.
"""

import csv
import io
from pathlib import Path
from typing import Any

from polyspace.data.records import ClipRecord, VideoDataset, check_root, inside, partition
from polyspace.utils.errors import UserError
from polyspace.utils.reading import read_json, read_text, reads

VIDEO_FOLDER = "20bn-something-something-v2"
PREFIX = "something-something-v2-"


def build(root: Path, split: str, *, annotations: Path | None = None) -> VideoDataset:
    root = check_root(root, "ssv2")
    folders = [Path(annotations)] if annotations else [root, root / "annotations", root / "labels"]
    file = _find(folders, "labels.json")
    labels = read_json(file, "ssv2 labels", dict[str, str | int])
    with reads(file, "ssv2 labels"):
        ids = {name: int(label) for name, label in labels.items()}
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"ssv2 labels do not number their {len(ids)} classes 0 to {len(ids) - 1}")
    classes = sorted(ids, key=ids.__getitem__)
    file = _find(folders, f"{split}.json")
    answers = _answers(folders) if split == "test" else {}
    notes = ["ssv2 test list without test-answers: clips have no labels"] if split == "test" and not answers else []
    candidates = [
        _record(root, file, item, ids, answers) for item in read_json(file, f"ssv2 {split} list", list[dict[str, Any]])
    ]
    return partition("ssv2", split, classes, candidates, notes)


def _find(folders: list[Path], name: str) -> Path:
    tried = [folder / f"{prefix}{name}" for folder in folders for prefix in (PREFIX, "")]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"ssv2: no {name} (tried {', '.join(map(str, tried))})")


def _answers(folders: list[Path]) -> dict[str, str]:
    for folder in folders:
        for prefix in (PREFIX, ""):
            path = folder / f"{prefix}test-answers.csv"
            if path.is_file():
                lines = io.StringIO(read_text(path, "ssv2 answers"), newline="")
                with reads(path, "ssv2 answers"):
                    return {row[0]: row[1] for row in csv.reader(lines, delimiter=";") if len(row) == 2}
    return {}


def _record(root: Path, file: Path, item: dict[str, Any], ids: dict[str, int], answers: dict[str, str]) -> ClipRecord:
    if not isinstance(item, dict) or "id" not in item:
        raise UserError(f"{file}: an item lacks an id: {item!r:.80}")
    clip = str(item["id"])
    template = item.get("template") or answers.get(clip)
    if not isinstance(template, str | None) or not isinstance(item.get("label"), str | None):
        raise UserError(f"{file}: clip {clip:.80} has a template or a label that is no text")
    key = template.replace("[", "").replace("]", "") if template else None
    if key is not None and key not in ids:
        raise UserError(f"{file}: clip {clip:.80} has template {template!r:.80}, which is not in the labels file")
    label = None if key is None else ids[key]
    return ClipRecord(clip, inside(root, f"{VIDEO_FOLDER}/{clip}.webm"), label, clip, item.get("label"))
