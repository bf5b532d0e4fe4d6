"""Converters from streamed moments: time and memory over the number of pairs, beside the usual libraries.

    python bench/convert.py --out docs/results/convert.json

Pairs are made block by block and never held; `ours` is one pass of float64 moments, then ridge (twelve penalties),
Procrustes (1024 -> 768, iterated) and debiased CKA. scikit-learn's Ridge (one penalty) and SciPy's
orthogonal_procrustes (on equal widths, it knows no others) get the rows in memory, as far as --peers allows.

Tokens: clips of 512 tokens (8×8×8) of 256 dims into a space of 392 (8×7×7) of 192 dims, drawn, resampled, counted (64
random places a clip) and sampled for the network as `train-converter --stream --tokens` does; none is kept.
"""

import argparse
import datetime
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from polyspace.models.spaces.tokens import resample_tokens
from polyspace.train.alignment.gathering import gather
from polyspace.train.alignment.pairs import Block
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.log import table
from polyspace.utils.moments import Moments
from polyspace.utils.procrustes import procrustes_from_moments
from polyspace.utils.ridge import fit_ridge, r2_from_moments

D, E, BLOCK = 1024, 768, 8192


def block(index: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs with a decaying spectrum and a noisy linear relation, float32."""
    generator = torch.Generator().manual_seed(index)
    fixed = torch.Generator().manual_seed(10**6)
    mix = torch.randn(D, E, generator=fixed) / D**0.5
    scale = torch.logspace(0, -1.5, D)
    x = torch.randn(rows, D, generator=generator) * scale + 0.5
    return x, x @ mix + 0.05 * torch.randn(rows, E, generator=generator)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def naive_r2(fit: Moments, held: Moments) -> float:
    naive = procrustes_from_moments(fit, max_iterations=0)
    return r2_from_moments(*naive.affine(), held)


def ours(n: int) -> dict[str, float]:
    fit, held = Moments(), Moments()
    making, start = 0.0, time.perf_counter()
    for index, first in enumerate(range(0, n, BLOCK)):
        begun = time.perf_counter()
        x, y = block(index, min(BLOCK, n - first))
        making += time.perf_counter() - begun
        (held if index % 10 == 9 else fit).update(x, y)
    passed = time.perf_counter() - start - making
    if held.n == 0:
        held.update(*block(10**5, 512))
    start = time.perf_counter()
    ridge = fit_ridge(fit, held)
    ridged = time.perf_counter() - start
    start = time.perf_counter()
    turned = procrustes_from_moments(fit)
    procrustes = time.perf_counter() - start
    return {
        "pass_s": passed,
        "ridge_s": ridged,
        "procrustes_s": procrustes,
        "peak_mib": peak_mib(),
        "ridge_r2": r2_from_moments(ridge.weight, ridge.bias, held),
        "procrustes_r2": r2_from_moments(*turned.affine(), held),
        "naive_procrustes_r2": naive_r2(fit, held),
        "cka_debiased": fit.linear_cka(),
    }


GRIDS, WIDTHS = {"student": (8, 8, 8), "teacher": (8, 7, 7)}, {"student": 256, "teacher": 192}


def token_blocks(clips: int, at_once: int = 16) -> Iterator[Block]:
    """A teacher's tokens are a noisy linear map of the student's, resampled; every tenth block is held out."""
    mix = torch.randn(*WIDTHS.values(), generator=torch.Generator().manual_seed(10**6)) / WIDTHS["student"] ** 0.5
    for index, first in enumerate(range(0, clips, at_once)):
        count, generator = min(at_once, clips - first), torch.Generator().manual_seed(index)
        x = torch.randn(count, math.prod(GRIDS["student"]), WIDTHS["student"], generator=generator)
        y = resample_tokens(x, GRIDS["student"], GRIDS["teacher"]) @ mix
        y += 0.1 * torch.randn(y.shape, generator=generator)
        yield Block({"student": x, "teacher": y}, torch.full((count,), index % 10 == 9))


def tokens(clips: int) -> dict[str, float]:
    start = time.perf_counter()
    found = gather(token_blocks(clips), "student", ["teacher"], GRIDS, rows=50_000)["teacher"]
    passed = time.perf_counter() - start
    ridge = fit_ridge(found.fit, found.held)
    per_clip = sum(4 * math.prod(GRIDS[k]) * WIDTHS[k] for k in GRIDS)
    return {
        "pass_s": passed,
        "ridge_r2": r2_from_moments(ridge.weight, ridge.bias, found.held),
        "peak_mib": peak_mib(),
        "streamed_mib": clips * per_clip / 2**20,
    }


def peers(n: int) -> dict[str, float]:
    from scipy.linalg import orthogonal_procrustes
    from sklearn.linear_model import Ridge

    blocks = [block(i, min(BLOCK, n - first)) for i, first in enumerate(range(0, n, BLOCK))]
    x, y = (torch.cat(part).double().numpy() for part in zip(*blocks, strict=True))
    start = time.perf_counter()
    Ridge(alpha=1.0).fit(x, y)
    ridge = time.perf_counter() - start
    start = time.perf_counter()
    orthogonal_procrustes(x[:, :E] - x[:, :E].mean(0), y - y.mean(0))
    return {"ridge_s": ridge, "procrustes_s": time.perf_counter() - start, "peak_mib": peak_mib()}


def measured(out: Path, who: str, n: int) -> dict[str, Any]:
    """A process for each measurement, so that its peak memory is its own."""
    part = out.with_suffix(".part.json")
    subprocess.run([sys.executable, __file__, "--out", str(part), "--one", who, str(n)], check=True)
    row = {"who": who, "n": n} | json.loads(part.read_text())
    part.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peers", type=int, default=100_000, help="largest n for the in-memory libraries")
    parser.add_argument("--clips", type=int, nargs="+", default=[500, 2000, 10_000], help="lengths of token streams")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        write_json(args.out, {"ours": ours, "peers": peers, "tokens": tokens}[args.one[0]](int(args.one[1])))
        return
    jobs = [(who, n) for n in args.sizes for who in (("ours", "peers") if n <= args.peers else ("ours",))]
    rows = [measured(args.out, who, n) for who, n in [*jobs, *(("tokens", n) for n in args.clips)]]
    keys = [
        "who",
        "n",
        "pass_s",
        "ridge_s",
        "procrustes_s",
        "peak_mib",
        "ridge_r2",
        "procrustes_r2",
        "naive_procrustes_r2",
        "streamed_mib",
    ]
    shown = [[f"{r[k]:.4g}" if isinstance(r.get(k), float) else str(r.get(k, "–")) for k in keys] for r in rows]
    for text in table(shown, keys):
        sys.stdout.write(text + "\n")
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "torch": torch.__version__}
    head = {"command": "python " + " ".join(sys.argv), "date": datetime.date.today().isoformat(), "machine": machine}
    write_json(args.out, head | {"d_in": D, "d_out": E, "rows": rows})


if __name__ == "__main__":
    main()
