"""RLDS episodes as TFDS writes them: `*.tfrecord*` shards beside features.json, one Example an episode.

An episode's steps lie in one Example, features by path: `steps/observation/state` holds T·7 floats, an image feature T
JPEG or PNG files. Which features make the state, and the rate, stand nowhere in the files: both are known here for
Bridge (Walke et al. 2023) and DROID, and are asked for otherwise. Bridge's state is [x, y, z, roll, pitch, yaw,
gripper (1 open)], its Euler angles taken as extrinsic xyz. Checksums are checked, damaged records left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyspace.data.episode_records import Draft, EpisodeDataset, Recorded, Unfit, collect
from polyspace.data.frames import EncodedFrames, FrameSource, decode_image
from polyspace.data.tfrecord import Feature, Record, RecordError, parse_example, read_record_at, read_records
from polyspace.data.video import VideoError
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.reading import read_json, reads

STEPS, OBSERVATION = "steps/", "steps/observation/"
# first word of the name -> (observation features that make the state, steps a second)
KNOWN = {
    "bridge": (("state",), 5.0),
    "droid": (("cartesian_position", "gripper_position"), 15.0),
}
MEANING = {
    "bridge": "the commanded change of the pose within a step [m, rad] and the commanded gripper (1 open, 0 closed)",
    "": "`steps/action` as recorded; features.json does not say what it means",
}


@dataclass(frozen=True)
class Schema:
    """What features.json says of the steps: shapes of the number features, names of the cameras."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    fps: float


def build(
    root: Path,
    split: str | None = None,
    camera: str | None = None,
    state: tuple[str, ...] | None = None,
    fps: float | None = None,
) -> EpisodeDataset:
    """Episodes of one split's shards, or of all. `state` names observation features that join to 7 numbers and `fps`
    is the rate; both are needed for a data set that isn't known here. Ids are `<shard>#<record>`; the group is the
    file an episode was made from, where the metadata name it."""
    folder = _folder(root)
    with reads(folder / "features.json", "rlds features"):
        schema = _schema(folder, state, fps)
    shards = _shards(folder, split)
    dataset = collect(schema.name, "rlds", _drafts(schema, root, shards), camera)
    told, here = _told(folder, {_split(s) for s in shards}), len(dataset.records) + len(dataset.left_out)
    if told is not None and told != here:
        dataset.notes.append(f"{folder / 'dataset_info.json'} tells of {told} episodes, {here} are here")
    return dataset


def _folder(root: Path) -> Path:
    found = sorted(root.rglob("features.json"))
    if len(found) != 1:
        what = ", ".join(map(str, found[:4])) if found else "none"
        raise UserError(f"rlds: one features.json is expected below {root}, found {what}")
    return found[0].parent


def _split(shard: Path) -> str:
    return shard.name.split(".")[0].rpartition("-")[2]


def _shards(folder: Path, split: str | None) -> list[Path]:
    shards = sorted(folder.glob("*.tfrecord*"))
    splits = {_split(s) for s in shards}
    if split == "validation" and split not in splits:
        split = "val"
    if split is not None and split not in splits:
        raise UserError(f"--split {split}: {folder} has no shard of it{did_you_mean(split, splits)}")
    return [s for s in shards if split in (None, _split(s))]


def _told(folder: Path, splits: set[str]) -> int | None:
    """Episodes that dataset_info.json tells of; None where it isn't there."""
    file = folder / "dataset_info.json"
    if not file.is_file():
        return None
    info = read_json(file, "rlds information", dict[str, Any])
    with reads(file, "rlds information"):
        named = [item for item in info.get("splits", []) if item.get("name") in splits]
        return sum(int(n) for item in named for n in item.get("shardLengths", []))


# -- features.json ---------------------------------------------------------------------------------------------------


def _schema(folder: Path, state: tuple[str, ...] | None, fps: float | None) -> Schema:
    file = folder / "features.json"
    leaves = dict(_leaves(read_json(file, "rlds features"), ""))
    info = folder / "dataset_info.json"
    name = str(read_json(info, "rlds information", dict[str, Any]).get("name", "")) if info.is_file() else ""
    name = name or next((s.name.split(".")[0].rpartition("-")[0] for s in folder.glob("*.tfrecord*")), "")
    known = KNOWN.get(name.split("_")[0].lower())
    observed = {k.removeprefix(OBSERVATION): leaf for k, leaf in leaves.items() if k.startswith(OBSERVATION)}
    if known is None and (state is None or fps is None):
        numbers = sorted(k for k, leaf in observed.items() if "tensor" in leaf or "scalar" in leaf)
        ask = f"name them with state= (of {', '.join(numbers):.200}) and fps="
        raise UserError(f"rlds: {file}: what makes the state of {name!r:.80} and its rate are not known; {ask}")
    state = state or (known[0] if known else ())
    shapes = {f"{OBSERVATION}{k}": _shape(file, k, observed) for k in state}
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    if total != 7:
        raise UserError(f"{file}: {' + '.join(state)} are {total} numbers a step; a state is 7")
    cameras = tuple(sorted(k for k, leaf in observed.items() if "image" in leaf))
    for key in cameras:
        kind = observed[key]["image"].get("encodingFormat")
        if kind not in ("jpeg", "png"):
            raise UserError(f"{file}: images of {key} are stored as {kind}; jpeg and png are read")
    if not cameras:
        raise UserError(f"{file}: no image feature under {OBSERVATION}")
    if f"{STEPS}action" in leaves:
        shapes[f"{STEPS}action"] = _shape(file, "action", {"action": leaves[f"{STEPS}action"]})
    return Schema(name, shapes, cameras, state, fps or (known[1] if known else 0.0))


def _leaves(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    elif "sequence" in node or "dataset" in node:
        yield from _leaves((node.get("sequence") or node["dataset"]).get("feature", {}), path)
    else:
        yield path, node


def _shape(file: Path, key: str, leaves: dict[str, dict[str, Any]]) -> tuple[int, ...]:
    """Shape of a number feature within a step; UserError where there is none or it is packed in a way of its own."""
    if key not in leaves:
        raise UserError(f"{file}: no feature {key}{did_you_mean(key, leaves)}")
    leaf = leaves[key].get("tensor") or leaves[key].get("scalar")
    if leaf is None or leaf.get("encoding", "none") != "none":
        raise UserError(f"{file}: feature {key} does not hold plain numbers")
    return tuple(int(d) for d in leaf.get("shape", {}).get("dimensions", []))


# -- episodes --------------------------------------------------------------------------------------------------------


def _drafts(schema: Schema, root: Path, shards: list[Path]) -> Iterator[tuple[str, Callable[[], Draft]]]:
    for shard in shards:
        for record in read_records(shard):
            id = f"{shard.relative_to(root).as_posix()}#{record.number}"
            yield id, partial(_draft, schema, shard, id, record)


def _draft(schema: Schema, shard: Path, id: str, record: Record) -> Draft:
    with reads(shard, "episode in", Unfit):
        return _read(schema, shard, id, record)


def _read(schema: Schema, shard: Path, id: str, record: Record) -> Draft:
    try:
        if record.data is None:
            raise record.fault or RecordError("no data")
        example = parse_example(record.data)
    except RecordError as fault:
        raise Unfit(f"{shard}: {fault}") from fault
    parts = [_numbers(example, f"{OBSERVATION}{key}", schema) for key in schema.state]
    if len({len(p) for p in parts}) != 1:
        raise Unfit(f"its {' and '.join(schema.state)} have {', '.join(str(len(p)) for p in parts)} steps")
    cameras, notes = _cameras(schema, shard, record.offset, example)
    recorded = None
    if f"{STEPS}action" in schema.shapes:
        meaning = MEANING.get(schema.name.split("_")[0].lower(), MEANING[""])
        recorded = Recorded(_numbers(example, f"{STEPS}action", schema), meaning)
    texts = [t for t in _bytes(example, f"{STEPS}language_instruction") if t]
    source = _bytes(example, "episode_metadata/file_path")
    return Draft(
        id=id,
        group=source[0].decode(errors="replace") if source else id,
        cameras=cameras,
        states=torch.cat(parts, 1),
        fps=schema.fps,
        text=texts[0].decode(errors="replace") if texts else None,
        recorded=recorded,
        notes=tuple(notes),
    )


def _cameras(
    schema: Schema, shard: Path, offset: int, example: dict[str, Feature]
) -> tuple[dict[str, FrameSource], list[str]]:
    """Cameras with pictures. One flat image repeated stands for none; `has_image_*` is not asked, since published files
    hold false there beside real pictures."""
    cameras: dict[str, FrameSource] = {}
    notes = []
    for name in schema.cameras:
        images = _bytes(example, f"{OBSERVATION}{name}")
        if _flat(images, shard):
            notes.append(f"camera {name} holds one flat colour, so nothing")
        elif images:
            load = partial(_images, str(shard), offset, f"{OBSERVATION}{name}")
            cameras[name] = EncodedFrames(shard, len(images), load)
    return cameras, notes


def _flat(images: list[bytes], shard: Path) -> bool:
    if not images or any(image != images[0] for image in images):
        return False
    try:
        pixels = decode_image(images[0], shard)
    except VideoError:
        return False  # alignment tells of it
    return bool((pixels == pixels[0, 0]).all())


def _numbers(example: dict[str, Feature], key: str, schema: Schema) -> Tensor:
    """A number feature as float64 (T,d); Unfit where it is absent or not a whole number of steps long."""
    values, width = example.get(key), int(np.prod(schema.shapes[key]))
    if not isinstance(values, np.ndarray):
        raise Unfit(f"it lacks {key}")
    if width == 0 or len(values) % width:
        raise Unfit(f"its {key} has {len(values)} numbers, not a multiple of {width}")
    return torch.from_numpy(values.astype(np.float64)).view(-1, width)


def _bytes(example: dict[str, Feature], key: str) -> list[bytes]:
    values = example.get(key)
    return values if isinstance(values, list) else []


def _images(path: str, offset: int, key: str) -> list[bytes]:
    """The encoded images of one camera, read when they are wanted."""
    try:
        return _bytes(_example(path, offset), key)
    except RecordError as error:
        raise VideoError(path, str(error)) from error


@lru_cache(maxsize=4)
def _example(path: str, offset: int) -> dict[str, Feature]:
    return parse_example(read_record_at(Path(path), offset))
