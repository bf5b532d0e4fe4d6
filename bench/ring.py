"""Attention over a sequence spread over two ranks, against one process with as many threads and two other rings.

    python bench/ring.py --out docs/results/ring.json

Forward and backward of one attention (1 clip, 4 heads of 64, fp32), two ranks of one thread against one process of two:
on one machine a ring can gain no time but only memory, and what it loses is what it costs. Times are the slowest
rank's, the fastest of some calls in some rounds, in which all take turns. Memory is what a rank's peak RSS rose by over
its own q, k, v and gradient. Each measurement runs in processes of its own. The error is the largest of output, dq, dk
and dv against fp64, at 512 tokens.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ring_arms import ARMS, Arm, one_process
from torch import Tensor

from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.distrib import initialize, shutdown
from polyspace.utils.log import say, table
from polyspace.utils.run_info import run_info
from polyspace.utils.sequence import shard_sequence

HEADS, WIDTH, CHECKED = 4, 64, 512
MASKS = {"none": False, "causal": True}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def both_ways(attend: Any, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, causal: bool) -> tuple[list[Tensor], Any]:
    """Output and gradients, and the seconds forward and backward."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    if dist.is_initialized():
        dist.barrier()
    start = time.perf_counter()
    out = attend(*leaves, causal)
    middle = time.perf_counter()
    out.backward(grad)
    end = time.perf_counter()
    return [out.detach(), *(x.grad for x in leaves)], torch.tensor([middle - start, end - middle])


def error(arm: Arm, causal: bool) -> float:
    """Largest relative error of the own shard against dense attention in fp64."""
    group = dist.group.WORLD if arm.ranks > 1 else None
    layout = arm.layout if causal else "contiguous"
    torch.manual_seed(0)
    q, k, v, grad = torch.randn(4, 1, HEADS, CHECKED, WIDTH)
    truth, _ = both_ways(one_process, q.double(), k.double(), v.double(), grad.double(), causal)
    own = [shard_sequence(x, group, dim=2, layout=layout) for x in (q, k, v, grad)]
    found, _ = both_ways(arm.attend, *own, causal)
    expected = [shard_sequence(x, group, dim=2, layout=layout) for x in truth]
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True))


def measure(arm: Arm, length: int, causal: bool, repeats: int) -> dict[str, float]:
    """On each rank: what all of them agree on."""
    torch.set_num_threads(1 if arm.ranks > 1 else 2)
    wrong = error(arm, causal)
    q, k, v, grad = torch.randn(4, 1, HEADS, length // arm.ranks, WIDTH)
    before, times = peak_mib(), []
    for _ in range(repeats + 1):
        seconds = both_ways(arm.attend, q, k, v, grad, causal)[1]
        if arm.ranks > 1:
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
        times.append(seconds)
    forward, backward = min(times[1:], key=lambda pair: pair.sum().item()).tolist()
    rest = torch.tensor([wrong, peak_mib() - before])
    if arm.ranks > 1:
        dist.all_reduce(rest, dist.ReduceOp.MAX)
    return {"forward_s": forward, "backward_s": backward, "error": rest[0].item(), "peak_mib": rest[1].item()}


def _rank(rank: int, name: str, length: int, causal: bool, repeats: int, port: int, out: str) -> None:
    world = str(ARMS[name].ranks)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    initialize()
    found = measure(ARMS[name], length, causal, repeats)
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    shutdown()


def one(name: str, length: int, causal: bool, repeats: int) -> dict[str, float]:
    """In fresh processes, one a rank."""
    with socket.socket() as s, tempfile.NamedTemporaryFile() as out:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        mp.spawn(_rank, (name, length, causal, repeats, port, out.name), nprocs=ARMS[name].ranks)
        return json.loads(Path(out.name).read_text())


def measured(line: list[str], patience: float) -> dict[str, Any]:
    """What the process printed, or why it did not."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return {"note": f"not done after {patience:.0f} s"}
    if done.returncode:
        return {"note": done.stderr.strip().splitlines()[-1][-200:]}
    return json.loads(done.stdout)


def in_turns(length: int, mask: str, args: argparse.Namespace) -> dict[str, Any]:
    """Every arm's fastest of some rounds; one that is far behind in the first has no others."""
    row: dict[str, Any] = {"length": length, "mask": mask}
    for turn in range(args.rounds):
        for name in ARMS:
            if turn and ("note" in row[name] or seconds(row[name]) > 2 * seconds(row[next(iter(ARMS))])):
                continue
            line = [sys.executable, __file__, "--one", name, str(length), mask, "--repeats", str(args.repeats)]
            found = measured(line, args.patience)
            if not turn or ("note" not in found and seconds(found) < seconds(row[name])):
                row[name] = found
    return row


def seconds(found: dict[str, Any]) -> float:
    return found["forward_s"] + found["backward_s"] if "note" not in found else float("inf")


def cell(found: dict[str, Any]) -> str:
    if "note" in found:
        return "–"
    wrong = "" if found["error"] < 1e-5 else f", error {found['error']:.1g}"
    return f"{found['forward_s']:.3f} + {found['backward_s']:.3f} s, {found['peak_mib']:.0f} MiB{wrong}"


def page(shown: list[list[str]], heads: list[str], notes: list[str]) -> str:
    """The table as Markdown."""
    lines = [
        "# Attention over a sequence that is spread over ranks",
        "",
        f"`python bench/ring.py`, torch {torch.__version__}: 1 clip, {HEADS} heads of {WIDTH}, fp32, CPU; two ranks of",
        "one thread, or one process of two. Seconds forward + backward, of the slowest rank; MiB by which a rank's",
        "peak rose. An error is the largest relative one of output, dq, dk and dv",
        f"(at {CHECKED} tokens) where it is above 1e-5. torch's ring is the one inside its context_parallel, whose",
        "public entry has no backward pass on a CPU.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(row)} |" for row in shown),
    ]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--masks", nargs="+", default=list(MASKS), choices=MASKS)
    parser.add_argument("--repeats", type=int, default=3, help="calls after one to warm up; one above 8192 tokens")
    parser.add_argument("--rounds", type=int, default=3, help="in turns; the fastest counts")
    parser.add_argument("--patience", type=float, default=1200.0, help="seconds after which a measurement is given up")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, length, mask = args.one[0], int(args.one[1]), args.one[2]
        found = one(name, length, MASKS[mask], args.repeats if length <= 8192 else 1)
        sys.stdout.write(json.dumps(found))
        return
    rows: list[dict[str, Any]] = []
    notes = []
    for length, mask in [(n, m) for n in args.lengths for m in args.masks]:
        row = in_turns(length, mask, args)
        for name in ARMS:
            if "note" in row[name]:
                notes.append(f"{name}, {length} tokens, mask {mask}: {row[name]['note']}")
            say(f"{length} tokens, mask {mask}, {name}: {cell(row[name])}")
        rows.append(row)
    heads = ["tokens", "mask", *ARMS]
    shown = [[str(row["length"]), row["mask"], *(cell(row[name]) for name in ARMS)] for row in rows]
    for text in [*table(shown, heads), *notes]:
        say(text)
    if args.out:
        write_json(args.out, {"run": run_info("bench/ring.py"), "heads": HEADS, "width": WIDTH, "rows": rows})
        write_text(args.out.with_suffix(".md"), page(shown, heads, notes))
        say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
