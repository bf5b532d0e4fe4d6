"""HMDB51 (Kuehne et al. 2011): `<class>/*.avi` and `testTrainMulti_7030_splits/<class>_test_split{1,2,3}.txt`.

Lines are `name id` with 1 train, 2 test, 0 unused. Official counts per fold: 3570 / 1530 / 1666.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from polyspace.data.records import ClipRecord, VideoDataset, check_root, inside, partition
from polyspace.utils.errors import UserError
from polyspace.utils.reading import read_text

SPLIT_FOLDER = "testTrainMulti_7030_splits"
# fmt: off
CLASSES = [
    "brush_hair", "cartwheel", "catch", "chew", "clap", "climb", "climb_stairs", "dive", "draw_sword", "dribble",
    "drink", "eat", "fall_floor", "fencing", "flic_flac", "golf", "handstand", "hit", "hug", "jump", "kick",
    "kick_ball", "kiss", "laugh", "pick", "pour", "pullup", "punch", "push", "pushup", "ride_bike", "ride_horse",
    "run", "shake_hands", "shoot_ball", "shoot_bow", "shoot_gun", "sit", "situp", "smile", "smoke", "somersault",
    "stand", "swing_baseball", "sword", "sword_exercise", "talk", "throw", "turn", "walk", "wave",
]
# fmt: on


def build(root: Path, split: str, *, fold: int = 1, annotations: Path | None = None) -> VideoDataset:
    """Class ids follow the official alphabetical order whenever every class found is an official one."""
    root = check_root(root, "hmdb51")
    if fold not in (1, 2, 3):
        raise UserError(f"--fold {fold}: hmdb51 has folds 1, 2 and 3")
    folder = Path(annotations) if annotations else root / SPLIT_FOLDER
    files = sorted(folder.glob(f"*_test_split{fold}.txt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"hmdb51: no *_test_split{fold}.txt in {folder}")
    found = [file.name.removesuffix(f"_test_split{fold}.txt") for file in files]
    classes = list(CLASSES) if set(found) <= set(CLASSES) else sorted(found)
    notes = [] if split != "validation" else ["hmdb51 has no validation list: `validation` is its official test list"]
    ids = {name: label for label, name in enumerate(classes)}
    wanted = "1" if split == "train" else "2"
    candidates = [
        r for file, name in zip(files, found, strict=True) for r in _read(root, file, name, ids[name], wanted)
    ]
    return partition("hmdb51", split, classes, candidates, notes)


def _read(root: Path, file: Path, name: str, label: int, wanted: str) -> Iterator[ClipRecord]:
    for number, line in enumerate(read_text(file, "hmdb51 list", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        clip, _, tag = line.strip().rpartition(" ")
        if tag not in ("0", "1", "2") or not clip:
            raise UserError(f"{file} line {number}: expected `name 0|1|2`, got {line.strip()!r:.80}")
        if tag == wanted:
            clip_id = f"{name}/{clip}"
            yield ClipRecord(clip_id, inside(root, clip_id), label, source_video(clip, name))


def source_video(clip: str, class_name: str) -> str:
    """The film a clip was cut from: names read `<source>_<class>_<body>_<camera>_np<n>_<view>_<quality>_<n>.avi`."""
    match = re.match(rf"(.+)_{re.escape(class_name)}_[a-z]+_[a-z]+_np\d", clip)
    return match.group(1) if match else Path(clip).stem
