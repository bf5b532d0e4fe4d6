"""Sparse attention against dense SDPA and the public native-sparse-attention package: time and memory over length.

    python bench/attention.py --out docs/results/attention.json

Forward + backward of `--layers` (width 256, 4 heads) on a video of N cells; they share one layout of the cells, as in
the encoder. `ours` is the sparse form whatever the length, `switch` what the module picks by itself; in the last rows
only some columns of the grid are visible. Every measurement runs in a process of its own, so that its memory peak is
its own.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyspace.models.hnet.encoder import Grid
from polyspace.models.hnet.sparse_attention import SPARSE_FROM, NativeSparseAttention
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.log import say, table

DIM, HEADS = 256, 4
GRIDS = {
    1024: (4, 16, 16),
    1280: (5, 16, 16),
    1568: (8, 14, 14),
    2048: (8, 16, 16),
    3136: (16, 14, 14),
    4096: (16, 16, 16),
    8192: (32, 16, 16),
}
GRIDS |= {12544: (64, 14, 14), 25088: (32, 28, 28), 50176: (64, 28, 28)}
KINDS = ("dense", "ours", "switch", "package")
MASKED = [(3136, 0.25), (3136, 0.1), (12544, 0.25), (12544, 0.1)]  # cells, share of the columns that is visible


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def package_layer() -> nn.Module:
    """The public package at its 1-D form with comparable reach: blocks of 64, 8 selected, window 216."""
    from native_sparse_attention_pytorch import SparseAttention

    return SparseAttention(
        dim=DIM,
        dim_head=DIM // HEADS,
        heads=HEADS,
        sliding_window_size=216,
        compress_block_size=64,
        compress_block_sliding_stride=64,
        selection_block_size=64,
        num_selected_blocks=8,
        causal=False,
    )


def stacked(
    layers: list[NativeSparseAttention], grid: Grid, where: torch.Tensor | None, dense: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    def call(x: torch.Tensor) -> torch.Tensor:
        rows = None if dense else layers[0].lay_out(x, grid, where)
        for layer in layers:
            x = layer(x, grid, where, dense=dense, rows=rows)
        return x

    return call


def share_of_pairs(layer: NativeSparseAttention, x: torch.Tensor, grid: Grid, where: torch.Tensor | None) -> float:
    """Query-key pairs that the sparse form computes, padding included, over those of plain attention."""
    rows = layer.lay_out(x, grid, where)
    keys = rows.layout.num_blocks + layer.num_selected * rows.width + rows.halo.shape[-1]
    return rows.slots * keys / x.shape[1] ** 2


def one(kind: str, cells: int, visible: float, depth: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    grid = GRIDS[cells]
    where = None
    if visible < 1:
        columns = torch.randperm(grid[1] * grid[2])[: round(visible * grid[1] * grid[2])].sort().values
        where = (torch.arange(grid[0])[:, None] * grid[1] * grid[2] + columns).reshape(1, -1).to(device)
    seen = cells if where is None else where.shape[1]
    x = torch.randn(1, seen, DIM, device=device, requires_grad=True)
    if kind == "package":
        call: Callable[[torch.Tensor], torch.Tensor] = nn.Sequential(*(package_layer() for _ in range(depth))).to(
            device
        )
    else:
        layers = [NativeSparseAttention(DIM, HEADS).to(device) for _ in range(depth)]
        call = stacked(layers, grid, where, {"dense": True, "ours": False}.get(kind, layers[0].is_dense(grid)))

    before, times = peak_mib(), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call(x).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    extra = {"pairs_of_dense": share_of_pairs(layers[0], x, grid, where)} if kind == "ours" else {}
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mib() - before
    return {"seconds": min(times[1:]), "peak_mib": memory} | extra


def measured(line: list[str], patience: float) -> dict[str, Any]:
    """What the process printed, or why it did not."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {patience:.0f} s"}
    if done.returncode:
        return {"error": f"exit code {done.returncode}: {done.stderr[-200:]}"}
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=list(GRIDS), choices=GRIDS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds after which a measurement is given up")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        cells, visible = int(args.one[1]), float(args.one[2])
        sys.stdout.write(json.dumps(one(args.one[0], cells, visible, args.layers, 5 if cells <= 8192 else 2)))
        return
    rows: list[dict[str, Any]] = []
    for cells, visible in [(n, 1.0) for n in args.cells] + [case for case in MASKED if case[0] in args.cells]:
        row: dict[str, Any] = {"cells": cells, "grid": GRIDS[cells], "visible": visible}
        for kind in args.kinds:
            line = [sys.executable, __file__, "--layers", str(args.layers), "--one", kind, str(cells), str(visible)]
            failed = any("error" in r[kind] and r["visible"] == visible for r in rows)
            if kind == "package" and visible < 1:
                row[kind] = {"error": "knows whole sequences only"}
            else:
                row[kind] = {"error": "not tried: failed at fewer cells"} if failed else measured(line, args.patience)
        rows.append(row)
        times = ", ".join(f"{k} {row[k].get('seconds', float('nan')):.3f} s" for k in args.kinds)
        say(f"{cells} cells, {visible:.0%} visible: {times}")
    shown = [
        [
            f"{r['cells']} ({r['visible']:.0%})",
            *(f"{r[k]['seconds']:.3f} / {r[k]['peak_mib']:.0f}" if "seconds" in r[k] else "–" for k in args.kinds),
        ]
        for r in rows
    ]
    for line in table(shown, ["cells (visible)", *(f"{k} (s / MiB)" for k in args.kinds)]):
        say(line)
    if args.out:
        about = {"width": DIM, "heads": HEADS, "layers": args.layers, "sparse_from": SPARSE_FROM, "rows": rows}
        about |= {"command": " ".join(["python", *sys.argv]), "threads": torch.get_num_threads()}
        about |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"}
        write_json(args.out, about | {"date": datetime.date.today().isoformat()})
        say(f"-> {args.out}")


if __name__ == "__main__":
    main()
