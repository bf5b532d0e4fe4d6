"""What reading 16 frames of a clip costs: this package's reader, torchcodec, and decoding the whole clip.

    python bench/decode.py --out docs/results/decode.json

Each of the clips of POLYSPACE_REAL_DATA that opens, and generated ones; one thread, wall seconds, the median of
repeats, opening included. "same" counts the clips whose 16 frames are bit-equal to those of our reader (which tests
hold against the ffmpeg command line). What importing a decoder costs every worker once stands beside it.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from real_clips import REAL, videos_in
from torch import Tensor

from polyspace.data.sampling import segment_indices
from polyspace.data.synthetic import SyntheticConfig, generate
from polyspace.data.video_reader import VideoReader
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.errors import UserError
from polyspace.utils.log import quiet_libraries, say, table
from polyspace.utils.run_info import run_info

FRAMES = 16


def ours(path: Path) -> Tensor:
    with VideoReader(path) as video:
        return video.sample(lambda count: segment_indices(count, FRAMES))[1]


def whole(path: Path) -> Tensor:
    """PyAV as most scripts use it: every frame decoded and converted, then chosen from."""
    import av

    with av.open(str(path)) as file:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    return torch.stack([frames[i] for i in segment_indices(len(frames), FRAMES)])


def torchcodec(seek_mode: str) -> Callable[[Path], Tensor]:
    from torchcodec.decoders import VideoDecoder

    def read(path: Path) -> Tensor:
        video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
        return video.get_frames_at(indices=segment_indices(len(video), FRAMES)).data

    return read


def arms() -> dict[str, Callable[[Path], Tensor]]:
    return {
        "polyspace (PyAV)": ours,
        "torchcodec exact": torchcodec("exact"),
        "torchcodec approximate": torchcodec("approximate"),
        "PyAV, whole clip": whole,
    }


def import_seconds(package: str) -> float:
    """Of a process that has torch already; the second start, so that the files are in the page cache."""
    code = f"import torch, time; t = time.perf_counter(); import {package}; print(time.perf_counter() - t)"
    return [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)][1]


def sources(work: Path, clips: int) -> dict[str, list[Path]]:
    generate(SyntheticConfig(layout="hmdb51", out=work, clips=clips, classes=4, height=120, width=160))
    found = {"generated": videos_in(work)}
    for name in ("hmdb51", "ssv2", "clips", "odd"):
        files = videos_in(REAL / name)
        if files:
            found[name] = files
    return found


def measure(files: list[Path], repeats: int) -> dict[str, dict[str, Any]]:
    """Clips that our reader does not read are left out; clip by clip, one reader after another."""
    readers = arms()
    rows: dict[str, dict[str, Any]] = {n: {"s": 0.0, "read": 0, "same": 0, "worst": 0, "of": 0} for n in readers}
    for path in files:
        try:
            exact = ours(path)
        except UserError:
            continue
        for name, read in readers.items():
            rows[name]["of"] += 1
            seconds = []
            try:
                for _ in range(repeats):
                    start = time.perf_counter()
                    frames = read(path)
                    seconds.append(time.perf_counter() - start)
            except Exception as error:  # another decoder's own errors are of many kinds
                rows[name].setdefault("failed", []).append(f"{path.name}: {type(error).__name__}")
                continue
            rows[name]["s"] += statistics.median(seconds)
            rows[name]["read"] += 1
            if frames.shape == exact.shape:
                apart = int((frames.int() - exact.int()).abs().max())
                rows[name]["worst"] = max(rows[name]["worst"], apart)
                rows[name]["same"] += apart == 0
    return rows


def page(found: dict[str, dict[str, dict[str, Any]]], imports: dict[str, float], about: str) -> str:
    body = []
    for source, rows in found.items():
        for name, row in rows.items():
            each = f"{row['s'] / row['read'] * 1e3:.1f}" if row["read"] else "–"
            body.append([source, name, f"{row['read']} of {row['of']}", each, str(row["same"]), str(row["worst"])])
    head = ["clips", "reader", "read", "ms a clip", "same bits", "worst difference, of 255"]
    costs = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in imports.items())
    lines = [
        "# Reading 16 frames of a clip",
        "",
        about,
        "",
        *table(body, head),
        "",
        f"Import, once a process: {costs}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=24, help="generated clips")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    imports = {package: import_seconds(package) for package in ("av", "torchcodec.decoders")}
    with tempfile.TemporaryDirectory(prefix="bench_decode_") as work:
        found = {s: measure(files, args.repeats) for s, files in sources(Path(work), args.clips).items()}
    about = f"`python bench/decode.py`: one thread, the median of {args.repeats} readings of each clip."
    text = page(found, imports, about)
    say(text)
    write_json(args.out, {"run": run_info("bench/decode.py"), "imports_s": imports, "rows": found})
    write_text(args.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
