"""One pretraining update on one rank and on several, for bench/train_step.py.

The same global batch on every number of ranks, each rank a process with its share of the threads: on one machine ranks
can gain no time, and what they lose is what they cost. H-Net V-JEPA and the tubelet baseline of the same ViT, generated
clips, all of main.py's terms. Seconds are the median of the updates after two to warm up; memory is the largest rank's
peak RSS. Engines: plain on one rank; ddp, fsdp, and ddp with all ranks in one context group.
"""

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
from polyspace.utils.checkpoint_io import read_json, write_json
from polyspace.utils.distrib import gather_objects, initialize, once, shutdown
from polyspace.utils.log import say, table

PRESET, UNIT, FRAMES, SIZE, BATCH = "small", 16, 16, 112, 4
WARM, UPDATES = 2, 5


def updates(arch: str, engine: str, ranks: int, threads: int) -> dict[str, float]:
    """On this rank: median seconds of an update, and the largest rank's peak memory."""
    torch.set_num_threads(max(1, threads // ranks))
    machine = make_machine("cpu", "fsdp" if engine == "fsdp" else "auto", "fp32", ranks if engine == "context" else 1)
    torch.manual_seed(0)
    shape = {"arch": arch, "preset": PRESET, "unit": UNIT}
    config = validate(PretrainConfig, {"batch": BATCH, "steps": 100, "log_every": 1000})
    phase = build_phase(build_encoder(validate(EncoderConfig, shape)), config, 0)
    wrapped = machine.engine(phase, config)
    video = normalise(moving_clips(BATCH, 0, frames=FRAMES, size=SIZE).video, 0.45, 0.25)
    rows = machine.world.own(torch.arange(BATCH))
    seconds = []
    for step in range(WARM + UPDATES):
        batch = VideoBatch(video=video[rows], place=(step, int(rows[0])))
        start = time.perf_counter()
        output, _ = wrapped.update([batch], 1e-4, BATCH)
        wrapped.phase.after_update(step)
        output.loss.item()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    slowest = [max(times) for times in zip(*gather_objects(seconds[WARM:]), strict=True)]
    return {"s": statistics.median(slowest), "peak_mib": max(gather_objects(peak)), "loss": output.loss.item()}


def _rank(rank: int, port: int, arch: str, engine: str, ranks: int, threads: int, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    initialize(600)
    found = updates(arch, engine, ranks, threads)
    once(lambda: write_json(Path(out), found))
    shutdown()


def measure(arch: str, engine: str, ranks: int, threads: int) -> dict[str, Any]:
    """In processes of its own."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        out = f"{folder}/found.json"
        mp.spawn(_rank, (port, arch, engine, ranks, threads, out), nprocs=ranks)
        found = read_json(Path(out))
    return {"arch": arch, "engine": engine, "ranks": ranks, "clips_a_second": BATCH / found["s"], **found}


def ranks_rows(ranks: list[int], threads: int) -> list[dict[str, Any]]:
    rows = []
    for arch in ("hnet", "tubelet"):
        for number in ranks:
            for engine in ["plain"] if number == 1 else ["ddp", "fsdp", "context"]:
                rows.append(measure(arch, engine, number, threads))
                say(f"{arch} {engine} × {number}: {rows[-1]['s']:.2f} s, {rows[-1]['peak_mib']:.0f} MiB")
    return rows


def ranks_page(rows: list[dict[str, Any]], threads: int) -> str:
    """The table as Markdown."""
    columns = ["encoder", "engine", "ranks", "s an update", "clips a second", "of one rank", "peak MiB a rank"]
    alone = {r["arch"]: r["s"] for r in rows if r["ranks"] == 1}
    body = [
        [r["arch"], r["engine"], str(r["ranks"]), f"{r['s']:.2f}", f"{r['clips_a_second']:.2f}",
         f"{alone[r['arch']] / r['s']:.2f}" if r["arch"] in alone else "–", f"{r['peak_mib']:.0f}"]
        for r in rows
    ]  # fmt: skip
    said = (
        f"Preset {PRESET}, {BATCH} clips of {FRAMES} frames of {SIZE}², units of {UNIT} pixels, fp32, {threads} "
        "threads in all, gloo on one machine; all terms of the loss."
    )
    return "\n".join(["## On several ranks", "", said, "", *table(body, columns)]) + "\n"
