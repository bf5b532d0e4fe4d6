"""How close convert-index comes to its floor: the products alone, or reading and writing alone, whichever takes longer.

    python bench/index.py --out docs/results/index.json

Generated vectors, a ridge converter and a residual MLP (hidden as train-converter makes it). In turns, in one run:
  convert    polyspace convert-index on a bare .npy, in a process of its own (its peak memory; start-up excluded)
  verified   the same on an index, whose sha256 is compared while it is read
  products   only the matrix products of the same batches, from memory into memory: all threads in one product, or
             (apart) a product for each, whichever is faster
  disk       the source read, then as many bytes as the result has written and synced, in pieces of the same size
Before each of them the source's pages are given back to the system, so that all read from the disk where it allows.
`of_floor` is the larger of products and disk over convert: 1 would be a perfect overlap without any other work.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyspace.data.index import ABOUT, FORMAT, VECTORS, VERSION
from polyspace.models.spaces.converters import ConverterBank, LinearConverter, ResidualMLP, load_converters
from polyspace.models.spaces.converters import save_converters as save
from polyspace.train.alignment.conversion import spans
from polyspace.train.alignment.converter_source import ConverterConfig
from polyspace.train.convert_index import ConvertConfig, convert_index
from polyspace.utils.array_file import ArrayReader, ArrayWriter
from polyspace.utils.checkpoint_io import sha256_file, write_json
from polyspace.utils.log import say, table
from polyspace.utils.misc import torch_threads
from polyspace.utils.run_info import run_info
from polyspace.utils.standardise import Standardiser

KINDS = ("ridge", "residual_mlp")
HIDDEN = ConverterConfig.model_fields["hidden"].default
SHOWN = (
    "convert_s",
    "verified_s",
    "shared_products_s",
    "apart_products_s",
    "disk_s",
    "rows_a_second",
    "of_floor",
    "verified_of_floor",
    "peak_mib",
)


def make_source(work: Path, rows: int, dim: int) -> dict[str, Any]:
    """The vectors, an index around them, and a converters file of each kind; the space's words for `index.json`."""
    generator = torch.Generator().manual_seed(0)
    (work / "index").mkdir()
    with ArrayWriter(work / "index" / VECTORS, rows, dim) as array:
        for first, last in spans(rows, rows, 8192):
            array.write(first, torch.randn(last - first, dim, generator=generator).numpy())
        array.sync()
    space = {"checkpoint": "generated", "backend": "generated", "digest": "-", "dim": dim, "pooling": "-", "plan": {}}
    about = {"format": FORMAT, "format_version": VERSION, "space": "s", "dim": dim, "rows": rows, "metric": "cosine"}
    about |= {"student": "s", "backbone": space, "stand_in": False, "translated": None, "made_from": {}}
    write_json(work / "index" / ABOUT, about | {"sha256": {VECTORS: sha256_file(work / "index" / VECTORS)}})
    os.link(work / "index" / VECTORS, work / "bare.npy")
    linear = LinearConverter(torch.randn(dim, dim, generator=generator) / dim**0.5, torch.zeros(dim))
    unit = torch.ones(dim)
    mlp = ResidualMLP(linear, HIDDEN, torch.zeros(dim), unit, Standardiser(0 * unit, unit.diag(), unit.diag()))
    torch.nn.init.normal_(mlp.mlp[2].weight, std=dim**-0.5, generator=generator)
    told = {"student": "s", "spaces": {"s": space, "t": space}}
    for kind, converter in zip(KINDS, (linear, mlp), strict=True):
        held = {"t": {"kinds": {kind: {"r2": 0.0}}}}
        save(work / f"{kind}.pt", ConverterBank({"t": converter}), told | {"kind": kind, "held_out": held})
    return space


def convert(work: Path, kind: str, source: str, settings: dict[str, int]) -> dict[str, float]:
    """In this process: seconds of the command's work, and the most memory that the process ever had."""
    config = ConvertConfig(
        index=work / source, converters=work / f"{kind}.pt", space="t", out=work / "out", overwrite=True, **settings
    )
    start = time.perf_counter()
    convert_index(config)
    return {"s": time.perf_counter() - start, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_own_process(args: argparse.Namespace, kind: str, source: str) -> dict[str, float]:
    cold(args.work / "bare.npy")
    words = ["--out", str(args.work / "part.json"), "--work", str(args.work), "--one", kind, source]
    words += ["--rows", str(args.rows), "--batch", str(args.batch)]
    subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(args.work / "out")
    return json.loads((args.work / "part.json").read_text())


def products(args: argparse.Namespace, kind: str, workers: int) -> float:
    """Seconds of the bare matrix products of all batches; biases, GELU and standardising are left out. By 1 worker each
    product takes all threads, by several each takes one."""
    converter = load_converters(args.work / f"{kind}.pt")[0]["t"]
    linear = converter.linear if isinstance(converter, ResidualMLP) else converter
    chains: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []
    for _ in range(workers):
        x = torch.randn(args.batch, args.dim)
        out, hidden = torch.empty_like(x), torch.empty(args.batch, HIDDEN)
        chain = [(x, linear.weight, out)]
        if isinstance(converter, ResidualMLP):
            first, last = converter.mlp[0].weight.T, converter.mlp[2].weight.T
            chain += [(x, first, hidden), (hidden, last, out), (out.clone(), converter.back, out)]
        chains.append(chain)
    every = list(spans(args.rows_total, args.rows, args.batch))

    @torch.inference_mode()
    def take(worker: int) -> None:
        for begin, end in every[worker::workers]:
            for a, b, c in chains[worker]:
                torch.mm(a[: end - begin], b, out=c[: end - begin])

    with torch_threads(torch.get_num_threads() // workers), ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        list(pool.map(take, range(workers)))
        return time.perf_counter() - start


def disk(args: argparse.Namespace) -> float:
    """Seconds to read the source, and after it to write and sync a file of the result's size."""
    cold(args.work / "bare.npy")
    buffer = np.empty((args.batch, args.dim), np.float32)
    start = time.perf_counter()
    with ArrayReader(args.work / "bare.npy") as array:
        for first, last in spans(array.rows, args.rows, args.batch):
            array.read(first, buffer[: last - first])
    with open(args.work / "disk.bin", "wb", buffering=0) as file:
        for first, last in spans(args.rows_total, args.rows, args.batch):
            file.write(buffer[: last - first].data.cast("B"))
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (args.work / "disk.bin").unlink()
    return seconds


def cold(path: Path) -> None:
    """Give the file's pages back, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Medians over repeats in turns, and every single value."""
    runs: list[dict[str, float]] = []
    for _ in range(args.repeats):
        plain, verified = (in_own_process(args, kind, source) for source in ("bare.npy", "index"))
        run = {"convert_s": plain["s"], "verified_s": verified["s"], "peak_mib": plain["peak_mib"]}
        run["shared_products_s"], run["apart_products_s"] = (products(args, kind, n) for n in (1, args.workers))
        runs.append(run | {"disk_s": disk(args)})
    row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    row["products_s"] = min(row["shared_products_s"], row["apart_products_s"])
    floor = max(row["products_s"], row["disk_s"])
    row |= {"rows_a_second": args.rows_total / row["convert_s"], "of_floor": floor / row["convert_s"]}
    return {"converter": kind, **row, "verified_of_floor": floor / row["verified_s"], "runs": runs}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs"), help="where the files go, 10 GB")
    parser.add_argument("--rows-total", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rows", type=int, default=ConvertConfig.model_fields["rows"].default)
    parser.add_argument("--batch", type=int, default=ConvertConfig.model_fields["batch"].default)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.workers = torch.get_num_threads()
    return args


def main() -> None:
    args = arguments()
    if args.one:
        write_json(args.out, convert(args.work, *args.one, {"rows": args.rows, "batch": args.batch}))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    args.work = Path(tempfile.mkdtemp(prefix="bench_index_", dir=args.work))
    try:
        make_source(args.work, args.rows_total, args.dim)
        rows = [measure(args, kind) for kind in KINDS]
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    for line in table([[r["converter"], *(f"{r[k]:.4g}" for k in SHOWN)] for r in rows], ["converter", *SHOWN]):
        say(line)
    sizes = {"rows_total": args.rows_total, "dim": args.dim, "rows": args.rows, "batch": args.batch, "hidden": HIDDEN}
    write_json(args.out, {"run": run_info("bench/index.py"), **sizes, "rows_measured": rows})
    say(f"-> {args.out}")


if __name__ == "__main__":
    main()
