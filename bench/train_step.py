"""One pretraining update on one rank and on several: clips a second, and where memory goes.

    python bench/train_step.py --ranks 1 2 --out docs/results/train_step.json

The same global batch on every number of ranks, each rank a process with `--threads / ranks` threads: on one machine
ranks can gain no time, and what they lose is what they cost. H-Net V-JEPA and the tubelet baseline of the same ViT,
generated clips, all of main.py's terms. Seconds are the median of the updates after two to warm up; memory is the
largest rank's peak RSS. Engines: plain on one rank; ddp, fsdp, and ddp with all ranks in one context group.
"""

import argparse
import os
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from polyspace.config import validate
from polyspace.data.batch import VideoBatch
from polyspace.data.moving import moving_clips, normalise
from polyspace.train.encoders import EncoderConfig, build_encoder
from polyspace.train.machine import make_machine
from polyspace.train.pretrain import build_phase
from polyspace.train.vjepa.pretrain_config import PretrainConfig
from polyspace.utils.checkpoint_io import read_json, write_json, write_text
from polyspace.utils.distrib import gather_objects, initialize, once, shutdown
from polyspace.utils.log import say, table
from polyspace.utils.run_info import run_info

WARM = 2


def updates(arch: str, engine: str, ranks: int, args: argparse.Namespace) -> dict[str, float]:
    """On this rank: median seconds of an update, and the largest rank's peak memory."""
    torch.set_num_threads(max(1, args.threads // ranks))
    machine = make_machine("cpu", "fsdp" if engine == "fsdp" else "auto", "fp32", ranks if engine == "context" else 1)
    torch.manual_seed(0)
    shape = {"arch": arch, "preset": args.preset, "unit": args.unit}
    config = validate(PretrainConfig, {"batch": args.batch, "steps": 100, "log_every": 1000})
    phase = build_phase(build_encoder(validate(EncoderConfig, shape)), config, 0)
    wrapped = machine.engine(phase, config)
    video = normalise(moving_clips(args.batch, 0, frames=args.frames, size=args.size).video, 0.45, 0.25)
    rows = machine.world.own(torch.arange(args.batch))
    seconds = []
    for step in range(WARM + args.updates):
        batch = VideoBatch(video=video[rows], place=(step, int(rows[0])))
        start = time.perf_counter()
        output, _ = wrapped.update([batch], 1e-4, args.batch)
        wrapped.phase.after_update(step)
        output.loss.item()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    slowest = [max(times) for times in zip(*gather_objects(seconds[WARM:]), strict=True)]
    return {"s": statistics.median(slowest), "peak_mib": max(gather_objects(peak)), "loss": output.loss.item()}


def _rank(rank: int, port: int, arch: str, engine: str, ranks: int, args: argparse.Namespace, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    initialize(600)
    found = updates(arch, engine, ranks, args)
    once(lambda: write_json(Path(out), found))
    shutdown()


def measure(arch: str, engine: str, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    """In processes of its own."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        out = f"{folder}/found.json"
        mp.spawn(_rank, (port, arch, engine, ranks, args, out), nprocs=ranks)
        found = read_json(Path(out))
    return {"arch": arch, "engine": engine, "ranks": ranks, "clips_a_second": args.batch / found["s"], **found}


def page(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    columns = ["encoder", "engine", "ranks", "s an update", "clips a second", "of one rank", "peak MiB a rank"]
    alone = {r["arch"]: r["s"] for r in found["rows"] if r["ranks"] == 1}
    rows = [
        [r["arch"], r["engine"], str(r["ranks"]), f"{r['s']:.2f}", f"{r['clips_a_second']:.2f}",
         f"{alone[r['arch']] / r['s']:.2f}" if r["arch"] in alone else "–", f"{r['peak_mib']:.0f}"]
        for r in found["rows"]
    ]  # fmt: skip
    s = found["settings"]
    said = (
        f"`python bench/train_step.py`: preset {s['preset']}, {s['batch']} clips of {s['frames']} frames of "
        f"{s['size']}², units of {s['unit']} pixels, fp32, {s['threads']} threads in all, gloo on one machine."
    )
    return "\n".join(["# One update on one rank and on several", "", said, "", *table(rows, columns)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--archs", nargs="+", default=["hnet", "tubelet"], choices=["hnet", "tubelet"])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--unit", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    rows = []
    for arch in args.archs:
        for ranks in args.ranks:
            for engine in ["plain"] if ranks == 1 else ["ddp", "fsdp", "context"]:
                rows.append(measure(arch, engine, ranks, args))
                say(f"{arch} {engine} × {ranks}: {rows[-1]['s']:.2f} s, {rows[-1]['peak_mib']:.0f} MiB")
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    found = {"run": run_info("bench/train_step.py"), "settings": settings, "rows": rows}
    write_json(args.out, found)
    write_text(args.out.with_suffix(".md"), page(found))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
