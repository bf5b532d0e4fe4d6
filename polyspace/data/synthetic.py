"""python -m polyspace.data.synthetic: real video files in the official layouts, deterministic by seed.

The class of a clip is how its object moves (turns a clip and sense of rotation); every class shows the same set of
frames, so shuffled frames tell nothing. Beside the layout's own files, `synthetic/` holds what only a generator knows:
`truth.json` (class, scene) and `masks/<clip>.npz` (object mask per frame, packed bits).
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from polyspace.config import Config, parse, run_command
from polyspace.data import hmdb51, render
from polyspace.data.synthetic_droid import write_episode
from polyspace.data.video_writer import write_video
from polyspace.utils.array_file import disk_errors
from polyspace.utils.checkpoint_io import atomic_file, try_writing, write_json, write_text
from polyspace.utils.errors import UserError
from polyspace.utils.folders import LOCK, sole_writer
from polyspace.utils.log import Progress, say
from polyspace.utils.worker import map_in_processes

TEST_OF_TEN = (3, 6, 9)  # three clips in ten are test, as in HMDB51; others in each fold
DEFAULT_CLASSES = {"hmdb51": 51, "diving48": 48, "ssv2": 16, "droid": 1}


class SyntheticConfig(Config):
    layout: Literal["hmdb51", "diving48", "ssv2", "droid"] = Field(description="official layout to write")
    out: Path = Field(description="folder to write")
    clips: int = Field(200, ge=1, description="clips (droid: episodes) in all")
    classes: int | None = Field(None, ge=2, description="motion classes; none: hmdb51 51, diving48 48, ssv2 16")
    seed: int = Field(0, ge=0, description="same seed, same bytes")
    difficulty: float = Field(0.0, ge=0, le=3, description="noise, moving ground and distractors; 0 is clean")
    height: int = Field(64, ge=16, description="pixels")
    width: int = Field(80, ge=16, description="pixels")
    frames: int | None = Field(None, ge=3, description="frames a clip, a prime above the classes; none: 17 or more")
    fps: float = Field(12.0, gt=0, description="frames a second")
    workers: int = Field(2, ge=1, description="processes that draw and encode")


@dataclass(frozen=True)
class _Task:
    """One clip to be drawn: everything its bytes depend on."""

    name: str
    path: Path
    label: int
    seed: tuple[int, int]


def motion_name(label: int) -> str:
    turns = render.turns_of_class(label)
    return f"turn_{'cw' if turns > 0 else 'ccw'}_{abs(turns)}x"


def class_names(layout: str, classes: int) -> list[str]:
    """The official names where the whole official set is asked for (hmdb51), names of the motions elsewhere."""
    if layout == "hmdb51":
        if classes == len(hmdb51.CLASSES):
            return list(hmdb51.CLASSES)
        return sorted(motion_name(k) for k in range(classes))
    if layout == "ssv2":
        return [_template(render.turns_of_class(k)) for k in range(classes)]
    return [motion_name(k) for k in range(classes)]


def _template(turns: int) -> str:
    way = "clockwise" if turns > 0 else "counterclockwise"
    times = {1: "once", 2: "twice"}.get(abs(turns), f"{abs(turns)} times")
    return f"Moving [something] in a circle {way} {times}"


def _labels(config: SyntheticConfig, classes: int) -> list[int]:
    """A class for each clip, balanced, in shuffled order."""
    labels = np.arange(config.clips) % classes
    np.random.default_rng([config.seed, 1]).shuffle(labels)
    return [int(v) for v in labels]


def _is_test(position_in_class: int, fold: int = 1) -> bool:
    return (position_in_class + fold) % 10 in TEST_OF_TEN


def _draw(args: tuple[_Task, SyntheticConfig, int, list[int]]) -> dict[str, Any]:
    """Draw, encode and write one clip and its mask; returns its entry of truth.json."""
    task, config, frames, turns = args
    rng = np.random.default_rng(list(task.seed))
    clip = render.orbit_clip(rng, turns[task.label], frames, config.height, config.width, config.difficulty)
    write_video(task.path, clip.video, config.fps)
    with atomic_file(config.out / "synthetic" / "masks" / f"{task.name}.npz") as file:
        np.savez(file, shape=np.array(clip.mask.shape), bits=np.packbits(clip.mask))
    return {"id": task.name, "label": task.label, "turns": turns[task.label], "scene": asdict(clip.scene)}


def load_mask(root: Path, clip: str) -> np.ndarray:
    """The object's mask (T,H,W) bool of a generated clip."""
    with np.load(Path(root) / "synthetic" / "masks" / f"{clip}.npz", allow_pickle=False) as file:
        shape = tuple(file["shape"])
        return np.unpackbits(file["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)


def _draw_all(config: SyntheticConfig, tasks: list[_Task], frames: int, turns: list[int]) -> list[dict[str, Any]]:
    jobs = [(task, config, frames, turns) for task in tasks]
    truth = []
    with Progress(len(jobs), f"synthetic {config.layout}", "clip") as bar:
        for entry in _pool_map(jobs, config.workers):
            truth.append(entry)
            bar.step()
    return truth


def _pool_map(jobs: list[Any], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(_draw, jobs)
        return
    yield from map_in_processes(_draw, jobs, workers, "a process that draws clips died; run the same line again")


def _write_hmdb51(config: SyntheticConfig, names: list[str]) -> list[_Task]:
    tasks, lines = [], {name: ([], [], []) for name in names}
    for i, label in enumerate(_labels(config, len(names))):
        name = names[label]
        clip = f"synthetic{i:06d}_{name}_f_nm_np1_fr_med_0"
        for fold in (1, 2, 3):
            tag = 2 if _is_test(len(lines[name][0]) if fold == 1 else len(lines[name][fold - 1]), fold) else 1
            lines[name][fold - 1].append(f"{clip}.avi {tag} \n")
        tasks.append(_Task(clip, config.out / name / f"{clip}.avi", label, (config.seed, i)))
    for name, folds in lines.items():
        for fold, rows in enumerate(folds, 1):
            write_text(config.out / hmdb51.SPLIT_FOLDER / f"{name}_test_split{fold}.txt", "".join(rows))
    return tasks


def _parted(config: SyntheticConfig, classes: int) -> list[tuple[int, int, bool]]:
    """(clip number, label, is test) for layouts with one split."""
    seen = [0] * classes
    out = []
    for i, label in enumerate(_labels(config, classes)):
        out.append((i, label, _is_test(seen[label])))
        seen[label] += 1
    return out


def _write_diving48(config: SyntheticConfig, names: list[str]) -> list[_Task]:
    tasks, lists = [], {"train": [], "test": []}
    for i, label, test in _parted(config, len(names)):
        clip = f"{'-' if i % 7 == 0 else 's'}ynthetic{i:06d}_{label:05d}"  # official ids may begin with a dash
        item = {"vid_name": clip, "label": label, "start_frame": 0, "end_frame": _frames(config, len(names))}
        lists["test" if test else "train"].append(item)
        tasks.append(_Task(clip, config.out / "rgb" / f"{clip}.mp4", label, (config.seed, i)))
    for split, items in lists.items():
        write_json(config.out / f"Diving48_V2_{split}.json", items)
    write_json(config.out / "Diving48_vocab.json", [[*name.split("_"), "FREE"] for name in names])
    return tasks


def _write_ssv2(config: SyntheticConfig, names: list[str]) -> list[_Task]:
    tasks, lists = [], {"train": [], "validation": []}
    for i, label, test in _parted(config, len(names)):
        clip = str(100_001 + i)
        scene = _scene_of((config.seed, i))
        thing = f"a {scene.colour} {scene.shape}"
        caption = names[label].replace("[something]", thing).lower()
        item = {"id": clip, "label": caption, "template": names[label], "placeholders": [thing]}
        lists["validation" if test else "train"].append(item)
        tasks.append(_Task(clip, config.out / "20bn-something-something-v2" / f"{clip}.webm", label, (config.seed, i)))
    folder = config.out / "annotations"
    for split, items in lists.items():
        write_json(folder / f"something-something-v2-{split}.json", items)
    labels = {name.replace("[", "").replace("]", ""): str(k) for k, name in enumerate(names)}
    write_json(folder / "something-something-v2-labels.json", labels)
    return tasks


def _scene_of(seed: tuple[int, int]) -> render.Scene:
    """What the clip with this seed shows, without drawing it: the scene is the first thing its generator draws."""
    return render.draw_scene(np.random.default_rng(list(seed)))


def _frames(config: SyntheticConfig, classes: int) -> int:
    wanted = config.frames or render.prime_at_least(max(17, classes + 1))
    if wanted != render.prime_at_least(wanted) or wanted <= classes:
        best = render.prime_at_least(max(wanted, classes + 1))
        raise UserError(f"--frames {wanted} must be a prime above --classes {classes} (for example {best})")
    return wanted


def generate(config: SyntheticConfig) -> int:
    """Write the data set; returns the number of clips."""
    marker = config.out / "synthetic" / "truth.json"
    classes: list[str] = []
    frames = 0
    if config.layout != "droid":
        count = config.classes or DEFAULT_CLASSES[config.layout]
        classes, frames = class_names(config.layout, count), _frames(config, count)
    try_writing(config.out)
    if any(config.out.iterdir()) and not marker.parent.is_dir():
        raise UserError(f"--out {config.out} holds files that this command did not write; choose an empty folder")
    with disk_errors(marker.parent):
        marker.parent.mkdir(exist_ok=True)
    with sole_writer(config.out, f"{marker.parent.name}/{LOCK}", deep=2):
        marker.unlink(missing_ok=True)  # until all clips are those of these settings
        truth = _write_clips(config, classes, frames)
        settings = json.loads(config.model_dump_json(exclude={"out", "workers"}))
        write_json(marker, {"settings": settings, "classes": classes, "frames": frames, "clips": truth})
    return len(truth)


def _write_clips(config: SyntheticConfig, classes: list[str], frames: int) -> list[dict[str, Any]]:
    """Lists and clips; what truth.json says of each clip."""
    if config.layout == "droid":
        return [write_episode(config.out, config.seed, i, config.height, config.width) for i in range(config.clips)]
    writer = {"hmdb51": _write_hmdb51, "diving48": _write_diving48, "ssv2": _write_ssv2}[config.layout]
    turns = [render.turns_of_class(k) for k in range(len(classes))]
    if config.layout == "hmdb51" and len(classes) != len(hmdb51.CLASSES):
        order = sorted(range(len(classes)), key=motion_name)  # class ids follow the names' order
        turns = [turns[k] for k in order]
    return _draw_all(config, writer(config, classes), frames, turns)


def main(argv: Sequence[str]) -> int:
    config = parse(
        SyntheticConfig,
        argv,
        prog="polyspace synth",
        about="Write generated clips as real video files in an official data set layout.",
        example="python -m polyspace.data.synthetic --layout hmdb51 --out ./datasets/hmdb51 --clips 200 --seed 0",
    )
    count = generate(config)
    digest = zlib.crc32((config.out / "synthetic" / "truth.json").read_bytes())
    say(f"{count} clips in {config.layout} layout under {config.out} (truth crc32 {digest:08x})")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
