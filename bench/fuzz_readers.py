"""What bench/fuzz.py reads: data sets as people bring them (videos, images, annotations, robot episodes).

A reader makes a folder of good files once; a case changes one of them (`hit`) and calls `read`, which does all that the
product does with such files. What our own commands write is in fuzz_saved.py.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from real_clips import REAL

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "data")]  # their small data sets serve here too

VIDEOS = ("mp4", "mov", "webm", "mkv", "avi", "mp3")


class Escape(Exception):
    """A reader gave a file outside its root."""


@dataclass(frozen=True)
class Reader:
    """`make(folder, library)` writes good files; `read(folder, hit)` reads them; files of these `endings` are changed.
    `seal(folder, hit)` brings recorded sums up to date, so that a change is met behind them (two cases in three)."""

    make: Callable[[Path, Path], Any]
    read: Callable[[Path, Path], Any]
    endings: tuple[str, ...]
    seal: Callable[[Path, Path], None] | None = None
    rare: int = 1  # takes part in every so manyth round of a campaign: it draws pictures
    seconds: float = 20.0


# -- videos ----------------------------------------------------------------------------------------------------------


def make_videos(folder: Path, _: Path) -> None:
    from polyspace.data.video_writer import write_video

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (3, 24, 32, 3), dtype=np.uint8)
    frames = np.concatenate([np.roll(noise, k, 2) for k in range(6)])
    for ending in ("mp4", "webm", "avi"):
        write_video(folder / f"clip.{ending}", frames, 12.0)
    write_packets(folder / "stills.mov", [png(16, 12)] * 4, 12, 16)


def write_packets(path: Path, images: list[bytes], height: int, width: int) -> Path:
    """A video of PNG images as they are, under a head that says `height` and `width`."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("png", rate=5)
        stream.height, stream.width, stream.pix_fmt = height, width, "gray"
        for number, image in enumerate(images):
            packet = av.Packet(image)
            packet.stream, packet.time_base = stream, Fraction(1, 5)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            file.mux(packet)
    return path


def png(width: int, height: int) -> bytes:
    """A grey PNG that is all black: 12336x12336 of them are 20 KiB."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer, row = zlib.compressobj(9), b"\0" * (1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def copy_real(folder: Path, _: Path) -> None:
    for part in ("odd", "clips"):
        for path in sorted((REAL / part).rglob("*")):
            if path.is_file() and path.stat().st_size < 800_000:
                shutil.copyfile(path, folder / path.name)


def read_video(_: Path, path: Path) -> None:
    """Counting, sparse reads, one-pass sampling, streaming, probing; an index beyond the true end may be refused."""
    from polyspace.data.video import VideoReader, probe, read_frames

    with VideoReader(path) as video:
        video.expected, video.fps  # noqa: B018 (properties that read)
        count = video.num_frames
        for get in itertools.islice(video.stream(), 4):
            assert get().ndim == 3
        frames = None
        try:
            frames = video.read([0, count // 2, count - 1])
        except IndexError as error:
            if not str(error).startswith(str(path)):
                raise
        assert frames is None or frames.shape[0] == 3
    with VideoReader(path) as video:
        picked, frames = video.sample(lambda n: [0, n // 2, n - 1])
        assert len(picked) == len(frames) and frames.shape[-1] == 3
    info = probe(path)
    assert read_frames(path, [info.num_frames - 1]).shape[1:3] == (info.height, info.width)


def make_images(folder: Path, _: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    for name, options in {"a.jpg": {}, "b.png": {}, "c.jpg": {"progressive": True, "quality": 30}}.items():
        picture.save(folder / name, **options)
    picture.convert("P").save(folder / "d.png")
    (folder / "e.png").write_bytes(png(64, 64))


def read_image(_: Path, path: Path) -> None:
    from polyspace.data.frames import decode_image

    assert decode_image(path.read_bytes(), path).shape[-1] == 3


# -- data sets ---------------------------------------------------------------------------------------------------------


def make_dataset(layout: str, folder: Path, _: Path) -> None:
    from polyspace.data import synthetic

    size = ["--height", "32", "--width", "32", "--clips", "12", "--classes", "3", "--frames", "7"]
    if synthetic.main(["--layout", layout, "--out", str(folder), *size]):
        raise RuntimeError(f"{layout} could not be written")
    if layout == "ssv2":
        labels = next(folder.rglob("*labels.json"))
        words = next(iter(json.loads(labels.read_text())))
        clip = next(folder.rglob("*.webm")).stem
        (labels.parent / "something-something-v2-test.json").write_text(json.dumps([{"id": clip}, {"id": "2"}]))
        (labels.parent / "something-something-v2-test-answers.csv").write_text(f"{clip};{words}\n2;{words}\n")


def make_listed(folder: Path, _: Path) -> None:
    from polyspace.data.video_writer import write_video

    for name in "abc":
        write_video(folder / name / "x.avi", np.zeros((4, 16, 16, 3), np.uint8))
    rows = [
        f"{name}/x.avi,{name},a text of {name},{split}"
        for name, split in zip("abc", ("train", "validation", "test"), strict=True)
    ]
    (folder / "list.csv").write_text("path,label,text,split\n" + "\n".join(rows) + "\n")


def read_dataset(name: str, folder: Path, hit: Path) -> None:
    """Every split; where a record lies and what it is."""
    from polyspace.data import build_dataset
    from polyspace.utils.errors import UserError

    refused: list[UserError] = []
    for split in ("train", "validation", "test"):
        options = {"list_file": folder / "list.csv"} if name == "videofolder" and hit.suffix == ".csv" else {}
        try:
            data = build_dataset(name, folder, split, **options)
        except UserError as error:
            refused.append(error)
            continue
        for record in data.records:
            check_inside(folder, record.path)
            check_text(record.id, record.group, record.text or "")
            assert record.label is None or data.classes[record.label] is not None
    if refused:
        raise refused[0]


def check_inside(folder: Path, path: Path) -> None:
    if not Path(os.path.normpath(path)).is_relative_to(folder):
        raise Escape(f"{path} is outside {folder}")


def check_text(*texts: Any) -> None:
    """What the product keeps as text can be written to its manifests."""
    for text in texts:
        assert isinstance(text, str), f"{type(text).__name__} where a text is expected"
        text.encode()


# -- robot episodes ----------------------------------------------------------------------------------------------------


def make_annotation(folder: Path, _: Path) -> None:
    from robot_files import annotation, walk

    states = walk(15)
    raw = {f"{kind}.cartesian_position": states[:, :6].tolist() for kind in ("observation.state", "action")}
    raw |= {f"{kind}.gripper_position": states[:, 6].tolist() for kind in ("observation.state", "action")}
    annotation(folder, "0", states[::3], (5, 5), **raw)


def make_lerobot(form: str, folder: Path, _: Path) -> None:
    import test_lerobot

    getattr(test_lerobot, form)(folder)


def make_rlds(folder: Path, _: Path) -> None:
    from robot_files import walk
    from test_rlds import example

    from polyspace.data.tfrecord import write_record

    def fields(**children: Any) -> dict[str, Any]:
        return {"featuresDict": {"features": children}}

    numbers = {
        k: {"tensor": {"shape": {"dimensions": [n]}, "encoding": "none"}} for k, n in (("pose", "6"), ("grip", "1"))
    }
    image = {"image": {"shape": {"dimensions": ["4", "6", "3"]}, "encodingFormat": "png"}}
    observed = fields(cartesian_position=numbers["pose"], gripper_position=numbers["grip"], wrist=image)
    steps = {"sequence": {"feature": fields(observation=observed, language_instruction={"text": {}})}}
    (folder / "features.json").write_text(json.dumps(fields(steps=steps)))
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "droid_100", "splits": [{"name": "train", "shardLengths": ["2"]}]})
    )
    states, prefix = walk(5), "steps/observation/"
    features = {f"{prefix}cartesian_position": states[:, :6].ravel().tolist(),
                f"{prefix}gripper_position": states[:, 6].tolist(),
                f"{prefix}wrist": [png(6 + k, 4) for k in (0, 0, 0, 0, 0)],
                "steps/language_instruction": [b"open it"]}  # fmt: skip
    features[f"{prefix}wrist"][1] = features[f"{prefix}wrist"][0] + b" "
    record = write_record(example(features))
    (folder / "droid_100-train.tfrecord-00000-of-00001").write_bytes(record * 2)


def seal_records(folder: Path, hit: Path) -> None:
    """The first record's checksums, as far as its length can be believed."""
    from polyspace.data.tfrecord import write_record

    if "tfrecord" in hit.name:
        raw = hit.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        hit.write_bytes(write_record(raw[12 : 12 + min(length, len(raw))]) + raw[length + 16 :])


def read_episodes(folder: Path, hit: Path) -> None:
    from polyspace.data.episodes import build_episodes

    data = build_episodes(folder)
    for record in data.records:
        check_text(record.id, record.group, record.text or "")
        assert record.actions.shape == (len(record) - 1, 7)
        for name, camera in record.cameras.items():
            source: Any = getattr(camera, "source", camera)
            check_inside(folder, source.path)
            assert record.frames(name, 0, min(2, len(record))).shape[-1] == 3


READERS: dict[str, Reader] = {
    "video": Reader(make_videos, read_video, VIDEOS),
    "video_real": Reader(copy_real, read_video, VIDEOS, rare=2),
    "image": Reader(make_images, read_image, ("jpg", "png")),
    **{
        name: Reader(partial(make_dataset, name), partial(read_dataset, name), ("txt", "json", "csv"))
        for name in ("hmdb51", "diving48", "ssv2")
    },
    "videofolder": Reader(make_listed, partial(read_dataset, "videofolder"), ("csv",)),
    "droid_json": Reader(make_annotation, read_episodes, ("json",)),
    "droid_raw": Reader(partial(make_dataset, "droid"), read_episodes, ("json", "h5")),
    "lerobot21": Reader(partial(make_lerobot, "v21"), read_episodes, ("json", "jsonl", "parquet")),
    "lerobot3": Reader(partial(make_lerobot, "v3"), read_episodes, ("json", "parquet")),
    "rlds": Reader(make_rlds, read_episodes, ("json", "tfrecord-00000-of-00001"), seal_records),
}
