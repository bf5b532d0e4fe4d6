"""How close featurize comes to its floor, and to the script that a practitioner would write.

    python bench/featurize.py --out docs/results/featurize.json

Generated clips, and real ones where POLYSPACE_REAL_DATA holds some; the package's small backbones, then architectures
of published size with random weights (which cost the same). Measured in one run, loading excluded:
  floor       single-thread CPU seconds of decode + preprocessing + forwards, measured alone in one process, over cores
  featurize   wall seconds of the command's working loop with one worker a core
  plain       a loop per model with its own decoding (PyAV, whole clip) and transformers, torch's own threads
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from featurize_arms import TEACHERS, Job, featurize_seconds, floor_parts, full_size_weights, plain_seconds, write_clips

from polyspace.train.embedded.assets import assets
from polyspace.train.embedded.make import TASKS
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import quiet_libraries, say, table
from polyspace.utils.precision import has_bf16
from polyspace.utils.run_info import run_info


def measure(job: Job, work: Path, precisions: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """Rows of each precision, one for every repeat."""
    for precision in precisions:
        for repeat in range(repeats):
            parts = floor_parts(job, precision)
            seconds, store = featurize_seconds(job, work / f"{precision}_{repeat}", precision)
            plain = plain_seconds(job, precision)
            row = {"precision": precision, "clips": len(store), "floor_s": sum(parts.values()) / (os.cpu_count() or 1)}
            row |= {"batch": job.batch, "workers": os.cpu_count(), "featurize_s": seconds, "plain_s": plain} | parts
            say(f"{precision}: floor {row['floor_s']:.2f} s, featurize {seconds:.2f} s, plain {plain:.2f} s")
            if precision == precisions[0]:
                exact = store
            row["cosine"] = {
                s: torch.cosine_similarity(store.features(s), exact.features(s)).min().item() for s in store.spaces
            }
            yield row


def best(rows: list[dict[str, Any]], precision: str, key: str) -> float:
    return min(row[key] for row in rows if row["precision"] == precision)


def page(found: dict[str, list[dict[str, Any]]], clips: dict[str, int]) -> str:
    lines = ["# featurize against its floor and against a plain script", ""]
    lines += [
        "`python bench/featurize.py`: student and three teachers; the best of repeats; plain is a loop per model with "
        "its own decoding, as transformers gives them. Cosine is the lowest of all clips and spaces against the first "
        "precision. bf16 instructions on this CPU: "
        + ("yes." if has_bf16(torch.device("cpu")) else "no, it is emulated (and left out at full size)."),
        "",
    ]
    head = ["models", "clips", "precision", "floor s", "featurize s", "over floor", "plain s", "plain over featurize"]
    table_rows = []
    for size, rows in found.items():
        done = list(dict.fromkeys(row["precision"] for row in rows))
        first = best(rows, done[0], "plain_s")
        for precision in done:
            floor, ours, plain = (best(rows, precision, k) for k in ("floor_s", "featurize_s", "plain_s"))
            cosine = min(min(r["cosine"].values()) for r in rows if r["precision"] == precision)
            more = [f"{plain / ours:.2f}", f"{first / ours:.2f}", f"{cosine:.5f}"]
            numbers = [f"{floor:.2f}", f"{ours:.2f}", f"{ours / floor:.3f}", f"{plain:.2f}", *more]
            table_rows.append([size, str(clips[size]), precision, *numbers])
    lines += table(table_rows, [*head, "plain in the first precision over featurize", "cosine"])
    return "\n".join(lines) + "\n"


def write(out: Path, found: dict[str, list[dict[str, Any]]], clips: dict[str, int]) -> None:
    run = run_info("bench/featurize.py") | {"cores": os.cpu_count()}
    write_json(out, {"run": run, "clips": clips, "rows": found})
    write_text(out.with_suffix(".md"), page(found, clips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1000, help="generated clips for the small models")
    parser.add_argument(
        "--full_clips", type=int, default=8, help="clips for the models of published size, in batches of 2; 0: none"
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], help="the first is the reference")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="for the small models")
    args = parser.parse_args()
    quiet_libraries()
    work = Path(tempfile.mkdtemp(prefix="bench_featurize_"))
    found: dict[str, list[dict[str, Any]]] = {}
    clips: dict[str, int] = {}

    def take(size: str, job: Job, precisions: list[str], repeats: int) -> None:
        for row in measure(job, work / size, precisions, repeats):
            found.setdefault(size, []).append(row)
            write(args.out, found, clips)  # so that a run that is cut short leaves what it measured

    try:
        places = {name: assets() / name for name in ("vjepa2", *TEACHERS) if name in TASKS}
        job = Job(work / "clips", places, args.batch)
        clips["small"] = write_clips(job.root, args.clips)
        take("small", job, args.precisions, args.repeats)
        if args.full_clips:
            job = Job(work / "few", full_size_weights(work / "weights"), 2)
            clips["full size"] = write_clips(job.root, args.full_clips)
            # emulated bf16 would take a quarter of an hour to tell what emulation costs
            take("full size", job, args.precisions if has_bf16(torch.device("cpu")) else args.precisions[:1], 1)
    finally:
        shutil.rmtree(work)
    say(page(found, clips))


if __name__ == "__main__":
    main()
